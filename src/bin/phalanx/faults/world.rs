//! The processes of one run: a coordinator, a launcher a host, and what they say.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use phalanx::Rank;
use phalanx::auth::JobKey;
use rustix::process::{Pid, Signal, kill_process};

use super::heard::{Heard, Right};
use super::network::{self, Network};
use crate::world::own_command;

/// How often it is looked whether something has come.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Far more than anything here takes; what takes longer hangs.
pub const HANGS_AFTER: Duration = Duration::from_secs(30);
/// Lines kept of what is no report, to say why something hangs.
const LINES_MAX: usize = 40;
/// By this variable the processes of a run are found, wherever they have gone.
const MARK: &str = "CHAOS_RUN";

/// Ranks and spares of one host.
#[derive(Clone, Copy, Default, Debug)]
pub struct Share {
    pub ranks: u32,
    pub rank_from: u32,
    pub spares: u32,
}

/// Where a coordinator keeps what it decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    /// In its memory.
    Memory,
    /// In a folder.
    Folder,
    /// In a folder on a file system of its own that is so small that it can be filled.
    Small,
}

/// How a run's world is started.
#[derive(Clone, Debug)]
pub struct Plan {
    pub shares: Vec<Share>,
    /// Which host the coordinator is on.
    pub leads: usize,
    /// Options of the coordinator: rules.
    pub rules: Vec<String>,
    /// Options of each launcher.
    pub start: Vec<String>,
    /// What each rank is told.
    pub rank: Vec<String>,
    /// Where the coordinator keeps what it decides.
    pub store: Store,
}

/// Why a run could not be gone on with.
#[derive(Debug)]
pub enum Failure {
    /// Nobody goes on.
    Hung(String),
    /// The fault cannot be done.
    Setup(String),
    /// A signal asks this command to end.
    Interrupted(i32),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Setup(why)
    }
}

struct Line {
    of: &'static str,
    text: String,
}

/// A running world. Whatever of it still runs is killed when it is dropped.
pub struct World<'a> {
    plan: &'a Plan,
    /// Signals that ask this command to end.
    interrupts: &'a Receiver<i32>,
    network: Option<&'a Network>,
    coordinator: Child,
    pub launchers: Vec<Child>,
    pub heard: Heard,
    /// What was said and is no report.
    pub said: Vec<String>,
    lines: Receiver<Line>,
    tell: Sender<Line>,
    key: String,
    /// Of this run alone: where temporary files would go, and the coordinator's store.
    folder: PathBuf,
    address: String,
}

impl<'a> World<'a> {
    /// Starts it, and waits until every rank runs.
    pub fn start(
        plan: &'a Plan,
        network: Option<&'a Network>,
        interrupts: &'a Receiver<i32>,
    ) -> Result<Self, Failure> {
        let key = JobKey::random().map_err(|e| e.to_string())?.to_hex();
        let folder = std::env::temp_dir().join(format!("phalanx-chaos-{}", &key[..16]));
        std::fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let (tell, lines) = channel();
        let mut command = command(plan.leads, network, &key, &folder)?;
        let host = network.map_or_else(|| "127.0.0.1".to_owned(), |network| network.address(plan.leads));
        command.args(["coordinator", "--listen", &format!("{host}:0")]).args(&plan.rules);
        match plan.store {
            Store::Memory => {}
            Store::Folder => _ = command.arg("--state").arg(state_in(&folder)),
            Store::Small => {
                mount(&state_in(&folder))?;
                command.arg("--state").arg(state_in(&folder));
            }
        }
        let coordinator = talking(&mut command, "coordinator", &tell)?;
        let (heard, launchers, said, address) = (Heard::default(), Vec::new(), Vec::new(), String::new());
        let mut world = Self {
            plan,
            network,
            interrupts,
            coordinator,
            launchers,
            heard,
            said,
            lines,
            tell,
            key,
            folder,
            address,
        };
        world.address = world.wait_address()?;
        for (host, share) in plan.shares.iter().enumerate() {
            let launcher = world.launch(host, *share)?;
            world.launchers.push(launcher);
        }
        let ranks = plan.shares.iter().map(|share| share.ranks).sum();
        world.wait("every rank runs", |world| world.heard.all_run(ranks))?;
        world.heard.mark();
        Ok(world)
    }

    fn wait_address(&mut self) -> Result<String, Failure> {
        let told = self.said.len();
        let find = |said: &[String]| {
            said.iter()
                .skip(told)
                .find_map(|line| line.strip_prefix("coordinator: coordinator at ").map(str::to_owned))
        };
        self.wait("the coordinator listens", |world| find(&world.said).is_some())?;
        Ok(find(&self.said).unwrap_or_default())
    }

    fn launch(&self, host: usize, share: Share) -> Result<Child, String> {
        let mut command = command(host, self.network, &self.key, &self.folder)?;
        let Share { ranks, rank_from, spares } = share;
        command.args(["run", "--coordinator", &self.address, "-n", &ranks.to_string()]);
        command.args(["--rank-from", &rank_from.to_string(), "--spares", &spares.to_string()]);
        command.args(&self.plan.start).arg("--").args(own_command(&["chaos-rank"])?).args(&self.plan.rank);
        talking(&mut command, "launcher", &self.tell)
    }

    /// Waits until `is_so`, and takes what is said meanwhile. The error says what everybody said last.
    pub fn wait(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) -> Result<(), Failure> {
        let until = Instant::now() + HANGS_AFTER;
        while !is_so(self) {
            if Instant::now() >= until {
                return Err(Failure::Hung(format!("not within {} s: {what}", HANGS_AFTER.as_secs())));
            }
            if let Ok(signal) = self.interrupts.try_recv() {
                return Err(Failure::Interrupted(signal));
            }
            match self.lines.recv_timeout(LOOK_AGAIN) {
                Ok(line) => self.take(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        Ok(())
    }

    /// Waits until the fault is over, as is right or not.
    pub fn wait_over(&mut self, right: &Right) -> Result<(), Failure> {
        self.wait("everybody goes on", |world| right.is_over(&world.heard))
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.take(line);
        }
    }

    fn take(&mut self, line: Line) {
        // A launcher puts a label before each line of a rank.
        let behind = line.text.split_once("] ").filter(|_| line.text.starts_with('['));
        if line.of == "launcher" && behind.is_some_and(|(_, text)| self.heard.take(text)) {
            return;
        }
        if line.of == "coordinator"
            && !["coordinator at ", "phalanx: "].iter().any(|b| line.text.starts_with(b))
        {
            return;
        }
        if self.said.len() >= LINES_MAX {
            self.said.remove(0);
        }
        self.said.push(format!("{}: {}", line.of, line.text));
    }

    /// The process that sits at `rank`, as it was at first.
    pub fn pid_of(&self, rank: Rank) -> Result<u32, String> {
        self.heard.first.get(&rank).copied().ok_or_else(|| format!("{rank} has said nothing"))
    }

    /// The coordinator's process.
    pub fn coordinator(&self) -> u32 {
        self.coordinator.id()
    }

    /// Kills the coordinator.
    pub fn kill_coordinator(&mut self) -> Result<(), String> {
        self.coordinator.kill().and_then(|()| self.coordinator.wait()).map_err(|e| e.to_string()).map(drop)
    }

    /// How the coordinator has ended, if it has.
    pub fn coordinator_ended(&mut self) -> Option<ExitStatus> {
        self.coordinator.try_wait().ok().flatten()
    }

    /// Starts the coordinator again, with nothing but its folder.
    pub fn restart_coordinator(&mut self) -> Result<(), Failure> {
        let mut command = command(self.plan.leads, self.network, &self.key, &self.folder)?;
        command.env_remove("PHALANX_JOB_KEY").arg("coordinator").arg("--state").arg(self.state());
        self.said.clear();
        self.coordinator = talking(&mut command, "coordinator", &self.tell)?;
        let again = self.wait_address()?;
        if again != self.address {
            return Err(Failure::Setup(format!(
                "the coordinator was at {}, and is at {again}",
                self.address
            )));
        }
        Ok(())
    }

    /// The coordinator's store.
    pub fn state(&self) -> PathBuf {
        state_in(&self.folder)
    }

    /// Every process of this run.
    pub fn processes(&self) -> Vec<u32> {
        marked(&self.key)
    }

    /// The mark of this run, and its folder.
    pub fn traces(&self) -> (String, PathBuf) {
        (self.key.clone(), self.folder.clone())
    }

    /// Asks everything to end, and waits until it has.
    pub fn end(&mut self) -> Result<(), Failure> {
        for pid in self.launchers.iter().map(Child::id).chain([self.coordinator.id()]) {
            // One that has ended by itself is not reaped yet: the number is still its own.
            let _ = signal(pid, Signal::TERM);
        }
        let until = Instant::now() + HANGS_AFTER;
        while !self.launchers.iter_mut().chain([&mut self.coordinator]).all(has_ended) {
            if Instant::now() >= until {
                return Err(Failure::Hung(
                    "launchers or coordinator go on although they were asked to end".into(),
                ));
            }
            self.pass(LOOK_AGAIN / 4);
        }
        // What was on its way.
        while let Ok(line) = self.lines.try_recv() {
            self.take(line);
        }
        Ok(())
    }

    /// What everybody said last.
    pub fn last_words(&self) -> Vec<String> {
        let members = self.heard.members.iter().map(|(pid, m)| format!("process {pid}: {}", m.last));
        members.chain(self.said.iter().cloned()).collect()
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        for child in self.launchers.iter_mut().chain([&mut self.coordinator]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        for pid in marked(&self.key) {
            let _ = signal(pid, Signal::KILL);
        }
        if self.plan.store == Store::Small {
            let _ = unmount(&self.state());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn has_ended(child: &mut Child) -> bool {
    child.try_wait().is_ok_and(|status| status.is_some())
}

fn state_in(folder: &Path) -> PathBuf {
    folder.join("state")
}

/// A file system in memory that a few small files fit in.
fn mount(at: &Path) -> Result<(), String> {
    std::fs::create_dir(at).map_err(|e| format!("{}: {e}", at.display()))?;
    let at = at.display().to_string();
    network::run(&["mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "phalanx-chaos", &at]).map(drop)
}

fn unmount(at: &Path) -> Result<(), String> {
    network::run(&["umount", &at.display().to_string()]).map(drop)
}

/// This program, without words so far, on a host of the network or here.
fn command(host: usize, network: Option<&Network>, key: &str, folder: &Path) -> Result<Command, String> {
    // Tied to this process, so that nothing goes on if it is killed.
    let own = own_command(&[])?;
    let me = [own_command(&["tied", &std::process::id().to_string()])?, own].concat();
    let mut command = match network {
        None => {
            let mut command = Command::new(&me[0]);
            command.args(&me[1..]);
            command
        }
        Some(network) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &network.host(host)]).args(&me);
            command
        }
    };
    command.env("PHALANX_JOB_KEY", key).env(MARK, key).env("TMPDIR", folder);
    Ok(command)
}

/// Starts it, and tells every line that it prints.
fn talking(command: &mut Command, of: &'static str, tell: &Sender<Line>) -> Result<Child, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("the {of} cannot be started: {e}"))?;
    let outputs: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|out| Box::new(out) as _),
        child.stderr.take().map(|err| Box::new(err) as _),
    ];
    for output in outputs.into_iter().flatten() {
        let tell = tell.clone();
        std::thread::spawn(move || {
            for text in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(Line { of, text }).is_err() {
                    return;
                }
            }
        });
    }
    Ok(child)
}

/// Processes that have the mark of a run in their environment.
pub fn marked(key: &str) -> Vec<u32> {
    let mark = format!("{MARK}={key}");
    let is_marked = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|text| text == mark.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(is_marked).collect()
}

/// Sends a signal to one process.
pub fn signal(pid: u32, with: Signal) -> Result<(), String> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(format!("{pid} is no process"))?;
    kill_process(target, with).map_err(|e| format!("process {pid} cannot be signalled: {e}"))
}
