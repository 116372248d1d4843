//! Accepting connections, and stopping: no more are accepted, readiness fails, answers under way get time to end,
//! the rest get a proper end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::models::Models;
use crate::quota::Quotas;
use crate::{App, ServeOptions, Store, dialects};

/// How often idle models are looked for.
const TIDY: Duration = Duration::from_secs(2);

/// Called once the server listens.
pub type Bound<'a> = &'a mut dyn FnMut(SocketAddr);

/// Serves until SIGTERM or SIGINT. A second signal ends at once.
///
/// # Errors
/// If the address cannot be listened on, or the system gives no threads.
pub fn serve(options: ServeOptions, store: Arc<dyn Store>, bound: Bound<'_>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(options, store, bound))?;
    // Whoever still computes (a model that loads) is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

async fn run(options: ServeOptions, store: Arc<dyn Store>, bound: Bound<'_>) -> io::Result<()> {
    let listener = TcpListener::bind((options.host.as_str(), options.port)).await?;
    let app = Arc::new(App {
        models: Arc::new(Models::new(store, options.models)),
        access: options.access,
        quotas: Quotas::new(options.limits.per_key),
        limits: options.limits,
        metrics: Default::default(),
        log: options.log,
        replays: Default::default(),
        draining: AtomicBool::new(false),
        over: tokio::sync::watch::channel(false).0,
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    bound(listener.local_addr()?);
    tokio::spawn(load_and_tidy(Arc::clone(&app)));

    let router = dialects::router(Arc::clone(&app));
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(tokio::sync::Semaphore::new(app.limits.connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file handles, most likely: connections that end give some back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Beyond the cap a connection is closed unread: there is no memory to be had by opening many.
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let _ = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(app.limits.head)
            .max_buf_size(app.limits.head_bytes)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A connection that breaks is its client's affair; what ran for it is dropped with it.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    app.draining.store(true, Ordering::Relaxed);
    app.log.line(&json!({"event": "draining", "running": app.metrics.running.load(Ordering::Relaxed)}));
    let drained = graceful.shutdown();
    tokio::pin!(drained);
    let in_time = tokio::select! {
        () = &mut drained => true,
        () = tokio::time::sleep(app.limits.drain) => false,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if !in_time {
        app.over.send_replace(true);
        // Enough for the ends to be written; whoever does not read them is left.
        let _ = tokio::time::timeout(Duration::from_secs(2), drained).await;
    }
    app.log.line(&json!({"event": "stopped", "in_time": in_time}));
    Ok(())
}

/// Loads what is kept, then unloads idle models from time to time.
async fn load_and_tidy(app: Arc<App>) {
    for (model, refusal) in app.models.load_kept().await {
        app.log.line(&json!({"event": "not_loaded", "model": model, "error": refusal.to_string()}));
    }
    app.log.line(&json!({"event": "loaded", "ready": app.models.ready()}));
    loop {
        tokio::time::sleep(TIDY).await;
        app.models.unload_idle().await;
    }
}
