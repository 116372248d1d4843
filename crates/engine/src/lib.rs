//! The engine: many sequences over one model, a step at a time.
//!
//! It speaks tokens and events. It must not know HTTP, JSON dialects, file formats, families or which device computes.
//!
//! Start at [`runner`] (the line to the model) and [`worker`] (the loop body); then [`scheduler`] (who computes what),
//! [`blocks`] and [`prefix`] (in which memory), [`sampler`] (which token comes out), [`guide`] (which may), [`speculate`] (guessing ahead), [`engine`]
//! (the thread around it all), [`chat`] (from conversations to requests, from events to text).

#![forbid(unsafe_code)]

pub mod blocks;
pub mod chat;
pub mod drawing;
pub mod engine;
mod error;
pub mod event;
pub mod golden;
pub mod guide;
pub mod meter;
mod model_runner;
pub mod prefix;
pub mod request;
pub mod runner;
pub mod sampler;
pub mod scheduler;
mod scripted;
pub mod sequence;
pub mod session;
pub mod speculate;
pub mod worker;

pub use chat::{ChatEvent, ChatModel, DrawOptions, Ending, PICTURE_MARK, TextOptions, Transcriber, with_pictures};
pub use engine::{Engine, EngineOptions, Shutdown};
pub use error::{Error, Result};
pub use event::{Event, Finish, Flow, Sink, Usage};
pub use guide::Shaped;
pub use meter::{Energy, Meter};
pub use model_runner::{ModelRunner, RunnerOptions};
pub use prefix::Reuse;
pub use request::{Drawing, Id, Priority, Reasoning, Request, Seen};
pub use runner::{PictureInfo, Runner, RunnerInfo, StepOutput};
pub use sampler::{Sampler, Sampling};
pub use scheduler::ScheduleOptions;
pub use scripted::ScriptedRunner;
pub use session::Session;
pub use speculate::{DraftPolicy, Speculation};
pub use worker::{Stats, Worker, WorkerOptions};
