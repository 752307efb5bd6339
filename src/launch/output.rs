//! What children print, line by line, with their label.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

/// A longer line is handed on in parts of this length.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Which of its two outputs a child wrote to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// What a child is called; a spare gets the name of its rank when it takes a seat.
#[derive(Clone, Debug)]
pub(super) struct Label(Arc<Mutex<String>>);

impl Label {
    pub(super) fn new(text: String) -> Self {
        Self(Arc::new(Mutex::new(text)))
    }

    pub(super) fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    pub(super) fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A line of a child.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// `r0` for whoever is rank 0 when it is read, `spare 1` without a seat.
    pub label: String,
    /// Its process.
    pub pid: u32,
    /// Where it came from.
    pub stream: Stream,
    /// Without its end; what is no UTF-8 is replaced.
    pub text: String,
}

/// Where what the children print goes.
#[derive(Clone)]
pub enum Output {
    /// To this process's outputs, each line behind its label: `[r0] …`.
    Labelled,
    /// To a function, on a thread per child and stream; the child waits when it blocks.
    Pipe(Arc<dyn Fn(Line) + Send + Sync>),
    /// Straight to this process's outputs.
    Inherit,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Labelled => "Labelled",
            Self::Pipe(_) => "Pipe",
            Self::Inherit => "Inherit",
        })
    }
}

impl Output {
    /// Sets up the outputs of a child that is about to start.
    pub(super) fn prepare(&self, command: &mut Command) {
        match self {
            Self::Labelled | Self::Pipe(_) => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            Self::Inherit => {}
        }
    }

    /// Reads the outputs of a child that has started; `open` is dropped at their ends.
    pub(super) fn follow(&self, child: &mut Child, label: &Label, open: &Sender<()>) -> std::io::Result<()> {
        if let Some(out) = child.stdout.take() {
            self.read(out, child.id(), label, Stream::Out, open.clone())?;
        }
        if let Some(err) = child.stderr.take() {
            self.read(err, child.id(), label, Stream::Err, open.clone())?;
        }
        Ok(())
    }

    fn read(
        &self,
        from: impl Read + Send + 'static,
        pid: u32,
        label: &Label,
        stream: Stream,
        open: Sender<()>,
    ) -> std::io::Result<()> {
        let (output, label) = (self.clone(), label.clone());
        let named = std::thread::Builder::new().name(format!("phalanx-out-{pid}"));
        named.spawn(move || {
            let _open = open;
            let mut from = BufReader::new(from);
            let mut bytes = Vec::new();
            while let Ok(1..) = from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes) {
                let end = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                let text = String::from_utf8_lossy(end).into_owned();
                output.hand_on(Line { label: label.text(), pid, stream, text });
                bytes.clear();
            }
        })?;
        Ok(())
    }

    fn hand_on(&self, line: Line) {
        match self {
            Self::Pipe(take) => take(line),
            Self::Labelled | Self::Inherit => {
                // One write a line, so that lines of several children do not mix. A closed output is not our error.
                let text = format!("[{}] {}\n", line.label, line.text);
                let _ = match line.stream {
                    Stream::Out => std::io::stdout().lock().write_all(text.as_bytes()),
                    Stream::Err => std::io::stderr().lock().write_all(text.as_bytes()),
                };
            }
        }
    }
}
