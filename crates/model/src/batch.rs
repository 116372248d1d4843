//! One step's work: rows of several sequences, flat, without padding.
//!
//! A segment is a run of consecutive tokens of one sequence: a prefill chunk, one decoded token, or a token with drafts
//! to verify. Segments of all kinds mix freely in a step.

use std::ops::Range;

use fathom_core::{LatentForm, Span, Spans, Tensor};

/// Of which rows of a segment the logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: a prefill chunk that is not the last.
    None,
    /// The last row.
    Last,
    /// Every row (verification of drafts, `fathom logits`).
    All,
}

/// What rows enter the decoder as, where that is not a token of text.
#[derive(Clone, Debug)]
pub enum Input {
    /// Ids of a picture, which stand in place of the tokens.
    Codes,
    /// Some of a seen picture's rows, `[rows, dim]`.
    Rows(Tensor, Range<usize>),
}

/// Everything a forward pass needs to know about its rows. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token of every row.
    pub tokens: Vec<u32>,
    /// Position of every row in its sequence.
    pub positions: Vec<u32>,
    /// Cache slot that every row's keys and values go to.
    pub slots: Vec<u32>,
    /// One span per segment.
    pub spans: Vec<Span>,
    /// Block tables of the segments, one behind the other.
    pub tables: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// Rows whose picture logits are wanted, ascending.
    pub picture_rows: Vec<u32>,
    /// Rows that are no tokens of text, ascending.
    pub inputs: Vec<(Range<usize>, Input)>,
    /// Tokens per cache block.
    pub block: usize,
}

impl Batch {
    /// An empty batch over blocks of `block` tokens.
    pub fn new(block: usize) -> Self {
        Batch { block, ..Batch::default() }
    }

    /// Forgets all segments, keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.spans.clear();
        self.tables.clear();
        self.logit_rows.clear();
        self.picture_rows.clear();
        self.inputs.clear();
    }

    /// Appends ids of a picture being drawn, at positions `start..`, of whose last row the picture logits are wanted.
    ///
    /// # Panics
    /// As [`Batch::push`].
    pub fn push_codes(&mut self, ids: &[u32], start: usize, table: &[u32]) {
        let row = self.rows();
        self.push(ids, start, table, LatentForm::Absorbed, Logits::None);
        match self.inputs.last_mut() {
            Some((rows, Input::Codes)) if rows.end == row => rows.end = self.tokens.len(),
            _ => self.inputs.push((row..self.tokens.len(), Input::Codes)),
        }
        self.want_picture();
    }

    /// Asks for the picture logits of the last row.
    pub fn want_picture(&mut self) {
        self.picture_rows.push(self.tokens.len() as u32 - 1);
    }

    /// Appends a segment: `tokens` at positions `start..` of the sequence whose cache blocks are `table`.
    ///
    /// # Panics
    /// If the table is too short for the positions.
    pub fn push(&mut self, tokens: &[u32], start: usize, table: &[u32], form: LatentForm, logits: Logits) {
        let (row, end) = (self.tokens.len(), start + tokens.len());
        let blocks = end.div_ceil(self.block);
        assert!(table.len() >= blocks, "invariant: a sequence has cache blocks for every position it computes");
        let first_table = self.tables.len();
        self.tables.extend_from_slice(&table[..blocks]);
        self.tokens.extend_from_slice(tokens);
        for pos in start..end {
            self.positions.push(pos as u32);
            self.slots.push(table[pos / self.block] * self.block as u32 + (pos % self.block) as u32);
        }
        match logits {
            Logits::None => {}
            Logits::Last => self.logit_rows.push(self.tokens.len() as u32 - 1),
            Logits::All => self.logit_rows.extend(row as u32..self.tokens.len() as u32),
        }
        self.spans.push(Span { row, rows: tokens.len(), start, table: first_table, form });
    }

    /// The view that attention takes.
    pub fn spans(&self) -> Spans<'_> {
        Spans { spans: &self.spans, tables: &self.tables, block: self.block }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
