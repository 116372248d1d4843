//! The built binary, driven as a person would drive it: what it prints where, and how it exits.

mod it {
    //! One module per group of commands.
    mod bench;
    mod chat;
    mod convert;
    mod draw;
    pub(crate) mod fathom;
    mod logits;
    mod models;
    mod run;
    mod serve;
    mod show;
    mod train;
    mod verify;
}
