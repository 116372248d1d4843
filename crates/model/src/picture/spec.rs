//! What a model that sees and draws is made of, in numbers.

/// The picture side of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureSpec {
    /// Height and width of the pictures that it sees and draws, in pixels.
    pub side: usize,
    /// How pixels become numbers.
    pub pixels: PixelSpec,
    /// Its eyes.
    pub tower: TowerSpec,
    /// Pictures to ids and back.
    pub codec: CodecSpec,
    /// Inner width of the head that predicts ids.
    pub head_hidden: usize,
}

/// How pixels become numbers: `v / 255`, then, if normalised, `(v − mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelSpec {
    /// Whether mean and deviation are taken out.
    pub normalise: bool,
    /// Subtracted, per channel.
    pub mean: [f32; 3],
    /// Divided by, per channel.
    pub std: [f32; 3],
    /// Colour around a picture that is not square.
    pub background: [u8; 3],
    /// Least pixels of a side after scaling.
    pub least: usize,
}

impl Default for PixelSpec {
    fn default() -> Self {
        PixelSpec { normalise: true, mean: [0.5; 3], std: [0.5; 3], background: [127; 3], least: 14 }
    }
}

/// A vision transformer without a class token.
#[derive(Clone, Debug, PartialEq)]
pub struct TowerSpec {
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Width.
    pub dim: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Inner width of the feed-forward network.
    pub hidden: usize,
    /// Epsilon of its layer norms.
    pub eps: f32,
    /// Layers of the aligner that leads to the decoder's width.
    pub aligner_layers: usize,
}

/// A vector-quantised autoencoder (Esser et al. 2021; Sun et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct CodecSpec {
    /// Entries of the codebook.
    pub codes: usize,
    /// Width of an entry.
    pub code_dim: usize,
    /// Channels on both sides of the quantiser.
    pub latent: usize,
    /// Channels at full size.
    pub base: usize,
    /// Channels of each level over `base`; each level halves the side.
    pub multipliers: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub blocks: usize,
    /// Groups of its norms.
    pub groups: usize,
    /// Epsilon of its norms.
    pub eps: f32,
    /// Layers of the aligner that leads from an id's embedding to the decoder's width.
    pub aligner_layers: usize,
}

impl CodecSpec {
    /// Pixels of a code's side.
    pub fn factor(&self) -> usize {
        1 << (self.multipliers.len() - 1)
    }
}

impl PictureSpec {
    /// Patches of a side, as the tower cuts a picture.
    pub fn patches(&self) -> usize {
        self.side / self.tower.patch
    }

    /// Rows that a seen picture takes in a prompt.
    pub fn rows(&self) -> usize {
        self.patches() * self.patches()
    }

    /// Codes of a side of a drawn picture.
    pub fn grid(&self) -> usize {
        self.side / self.codec.factor()
    }

    /// Steps that drawing a picture takes.
    pub fn steps(&self) -> usize {
        self.grid() * self.grid()
    }
}
