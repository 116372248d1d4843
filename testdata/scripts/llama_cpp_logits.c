// Writes llama.cpp's float32 logits [tokens, vocab] of prompts, one behind the other, to a file.
//   llama_cpp_logits MODEL OUT REPACK(0|1) FLASH(0|1) LENGTH ID...     every LENGTH ids are a prompt
#include "llama.h"
#include <stdio.h>
#include <stdlib.h>

static void errors_only(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char **argv) {
    if (argc < 7) return 1;
    llama_log_set(errors_only, NULL);
    llama_backend_init();
    struct llama_model_params mp = llama_model_default_params();
    mp.use_extra_bufts = atoi(argv[3]);
    struct llama_model *model = llama_model_load_from_file(argv[1], mp);
    if (!model) return 2;
    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = 256;
    cp.n_threads = cp.n_threads_batch = 1;
    cp.flash_attn_type = atoi(argv[4]) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context *ctx = llama_init_from_model(model, cp);
    if (!ctx) return 3;
    int n = atoi(argv[5]), vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    FILE *out = fopen(argv[2], "wb");
    if (!out) return 5;
    for (char **ids = argv + 6; ids + n <= argv + argc; ids += n) {
        llama_memory_clear(llama_get_memory(ctx), true);
        for (int i = 0; i < n; i++) {
            batch.token[i] = atoi(ids[i]);
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(ctx, batch)) return 4;
        for (int i = 0; i < n; i++) fwrite(llama_get_logits_ith(ctx, i), sizeof(float), vocab, out);
    }
    return fclose(out) ? 6 : 0;
}
