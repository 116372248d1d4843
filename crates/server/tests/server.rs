//! The server over real sockets, with a model that says what it was told to say.

#[path = "it/client.rs"]
mod client;
#[path = "it/hostile.rs"]
mod hostile;
#[path = "it/manners.rs"]
mod manners;
#[path = "it/parrot.rs"]
mod parrot;
#[path = "it/pictures.rs"]
mod pictures;
#[path = "it/shapes.rs"]
mod shapes;
#[path = "it/transcripts.rs"]
mod transcripts;
