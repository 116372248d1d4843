//! Real clients against a real server: the packages that people use, a property tester over the OpenAPI document, and the
//! page in a browser. Python and Node packages are pinned in `clients/` and installed below the target directory; Chromium is the
//! system's.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The model that the program carries.
const MODEL: &str = "mini-r1";
/// A tiny random one whose template knows tools, which the carried one's does not, and where it lies.
const TOOLED: (&str, &str) = ("tooled", "testdata/models/llama");

/// A tiny random one that sees and draws.
const DRAWING: (&str, &str) = ("janus", "testdata/models/janus");

/// A running server; ends with it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs every client of `cargo xtask test --full`. `skipped` takes the reasons for what could not run here.
pub(crate) fn run(root: &Path, program: &Path, skipped: &mut Vec<String>) -> Result<()> {
    let mut satisfied = 0;
    let mut check = |command: &mut Command| check(command).map(|()| satisfied += 1);
    let target = crate::test::target(root);
    let home = target.join("clients");
    std::fs::create_dir_all(&home)?;
    let files = root.join("crates/xtask/clients");
    let named = |(name, path): (&str, &str)| format!("{name}={}", root.join(path).display());
    let (server, base) = start(program, &[MODEL, &named(TOOLED), &named(DRAWING)])?;

    match python(&home, &files.join("requirements.txt")) {
        Err(error) => skipped.push(format!("Python's clients: {error:#}")),
        Ok(bin) => {
            for script in ["clients.py", "schemas.py"] {
                check(Command::new(bin.join("python")).arg(files.join(script)).args([&base, MODEL, TOOLED.0]))?;
            }
            // A short context, so that every request ends soon.
            let (server, base) = start(program, &[MODEL, "--context", "128"])?;
            check(
                Command::new(bin.join("schemathesis"))
                    .arg("run")
                    .arg(format!("{base}/openapi.json"))
                    .args([
                        "--url",
                        &base,
                        "--max-examples",
                        "20",
                        "--seed",
                        "1",
                        "--request-timeout",
                        "60",
                        "--checks",
                        "not_a_server_error,response_schema_conformance,content_type_conformance",
                    ])
                    .current_dir(&home),
            )?;
            drop(server);
        }
    }
    // lm-evaluation-harness brings much along, so it has an environment of its own.
    match python(&target.join("harness"), &files.join("harness.txt")) {
        Err(error) => skipped.push(format!("lm-evaluation-harness: {error:#}")),
        Ok(bin) => {
            let (_server, base) = start(program, &[MODEL, "--precision", "exact"])?;
            check(Command::new(bin.join("python")).arg(files.join("harness.py")).args([&base, MODEL]).arg(program))?;
        }
    }
    match node(&home, &files) {
        Err(error) => skipped.push(format!("Node's clients: {error:#}")),
        Ok(()) => {
            let script = |name: &str| {
                let mut command = Command::new("node");
                command.arg(home.join(name)).arg(&base).current_dir(&home);
                command
            };
            check(script("clients.mjs").args([MODEL, TOOLED.0]))?;
            match browser() {
                Err(error) => skipped.push(format!("the page: {error:#}")),
                Ok(browser) => {
                    let picture = root.join("testdata/models/janus/image_0.png");
                    check(script("page.mjs").arg(browser).arg(home.join("page.png")).arg(picture))?;
                }
            }
        }
    }
    drop(server);
    println!("{satisfied} programs are satisfied with the server");
    Ok(())
}

/// Starts the program as a server, on any port.
fn start(program: &Path, args: &[&str]) -> Result<(Server, String)> {
    let mut child = Command::new(program)
        .args(["serve", "--port", "0"])
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the server")?;
    let stdout = child.stdout.take().context("the server's output")?;
    let server = Server(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let base = line.trim().strip_prefix("listening on ").context("the server does not say where it listens")?;
    Ok((server, base.to_owned()))
}

/// Two hundred clients for five minutes, with random ends.
pub(crate) fn load(root: &Path, program: &Path) -> Result<()> {
    let (server, base) = start(program, &[MODEL, "--context", "256", "--cache-tokens", "8192"])?;
    let script = root.join("crates/xtask/clients/load.py");
    check(Command::new("python3").arg(script).args([&base, MODEL, &server.0.id().to_string(), "300", "200"]))
}

fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// A Chromium, installed where the machine is Debian's and ours to install on.
fn browser() -> Result<String> {
    let here = || ["chromium", "chromium-browser", "google-chrome"].iter().find_map(|name| path_of(name));
    if here().is_none() && path_of("apt-get").is_some() {
        let apt = |args: &[&str]| check(Command::new("apt-get").arg("-qq").args(args).stdout(Stdio::null()));
        apt(&["update"])?;
        apt(&["install", "--yes", "--no-install-recommends", "chromium"])?;
    }
    here().context("there is no Chromium here")
}

fn path_of(program: &str) -> Option<String> {
    let out = Command::new("which").arg(program).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_owned())
}

/// A virtual environment with what is required; made again when that changes.
fn python(home: &Path, requirements: &Path) -> Result<std::path::PathBuf> {
    std::fs::create_dir_all(home)?;
    let (env, stamp) = (home.join("venv"), home.join("requirements.installed"));
    let wanted = std::fs::read_to_string(requirements)?;
    if std::fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) {
        check(Command::new("python3").args(["-m", "venv"]).arg(&env))?;
        check(Command::new(env.join("bin/pip")).args(["install", "--quiet", "-r"]).arg(requirements))?;
        std::fs::write(stamp, wanted)?;
    }
    Ok(env.join("bin"))
}

fn node(home: &Path, files: &Path) -> Result<()> {
    let wanted = std::fs::read_to_string(files.join("package.json"))?;
    let installed = home.join("package.json");
    for name in ["clients.mjs", "page.mjs"] {
        std::fs::copy(files.join(name), home.join(name))?;
    }
    if std::fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        std::fs::write(&installed, &wanted)?;
        let done =
            check(Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund"]).current_dir(home));
        if done.is_err() {
            std::fs::remove_file(&installed)?;
        }
        done?;
    }
    Ok(())
}
