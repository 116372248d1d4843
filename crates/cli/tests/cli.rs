//! The built binary, driven as a person would drive it: what it prints where, and how it exits.

mod it {
    //! One module per group of commands.
    pub(crate) mod fathom;
    mod models;
    mod show;
}
