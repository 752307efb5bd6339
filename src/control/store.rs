//! Where the coordinator writes what binds: the epoch before anybody is told of it, a decision before anybody acts.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use phalanx_core::coordinator::Record;
use phalanx_core::wire::codec::Wire;
use sha2::{Digest, Sha256};

/// A record.
const RECORD: Kind = Kind { name: "record", mark: *b"PHXR", version: 2 };
const DIGEST_BYTES: usize = 32;
/// Mark, version, then the digest of what follows.
const HEADER_BYTES: usize = 4 + 2 + DIGEST_BYTES;
/// A record is a view and a decision; what is longer was not written by a coordinator.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// What a file of the store holds, its name, and in which version it is.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) mark: [u8; 4],
    pub(super) version: u16,
}

/// Why a record cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another coordinator holds the store.
    #[error("another coordinator holds the store in {}; only one may decide", .0.display())]
    Held(PathBuf),
    /// The file is not what its name says.
    #[error("{} cannot be used by this version ({why}); restore it, or start a new world in an empty folder",
        path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system refused.
    #[error("the store cannot {what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
}

/// Keeps the last record.
pub trait Store {
    /// The record written last; `None` in a new store.
    ///
    /// # Errors
    /// When it cannot be read, or is not whole.
    fn load(&mut self) -> Result<Option<Record>, StoreError>;

    /// Replaces the record. On return it is durable as far as this store can make it.
    ///
    /// # Errors
    /// When it cannot be written; the one before then still stands.
    fn save(&mut self, record: &Record) -> Result<(), StoreError>;
}

/// A store that ends with its process: enough where coordinator and ranks die together.
#[derive(Debug, Default)]
pub struct MemoryStore {
    record: Option<Record>,
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Option<Record>, StoreError> {
        Ok(self.record.clone())
    }

    fn save(&mut self, record: &Record) -> Result<(), StoreError> {
        self.record = Some(record.clone());
        Ok(())
    }
}

/// A store in a folder of its own. A restarted coordinator on the same folder goes on where the old one stopped.
/// Clones share the lock.
#[derive(Clone, Debug)]
pub struct FileStore {
    folder: PathBuf,
    /// Held open: the lock ends with it, also when the process is killed.
    _lock: Arc<File>,
}

impl FileStore {
    /// Opens, or makes, the store in `folder`, and locks it.
    ///
    /// # Errors
    /// [`StoreError::Held`] while another coordinator has it; [`StoreError::Io`] when the folder cannot be used.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder).map_err(|cause| io("make", folder, cause))?;
        let path = folder.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|cause| io("open", &path, cause))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder: folder.to_owned(), _lock: Arc::new(lock) }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Held(folder.to_owned())),
            Err(TryLockError::Error(cause)) => Err(io("lock", &path, cause)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self, kind: Kind) -> PathBuf {
        self.folder.join(kind.name)
    }

    /// The body of a file, checked; `None`: there is no such file.
    pub(super) fn read(&self, kind: Kind) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(kind);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(io("open", &path, cause)),
        };
        let mut bytes = Vec::new();
        file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|cause| io("read", &path, cause))?;
        unseal(&bytes, kind).map(|body| Some(body.to_vec())).map_err(|why| StoreError::Foreign { path, why })
    }

    /// Replaces a file, readable by its owner only, by one that is whole and durable on return.
    pub(super) fn write(&self, kind: Kind, body: &[u8]) -> Result<(), StoreError> {
        let (path, fresh) = (self.path(kind), self.folder.join(format!("{}.new", kind.name)));
        let opened = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh);
        let mut file = opened.map_err(|cause| io("create", &fresh, cause))?;
        // A leftover of that name keeps the mode it had.
        let private = std::fs::Permissions::from_mode(0o600);
        file.set_permissions(private).map_err(|cause| io("protect", &fresh, cause))?;
        file.write_all(&seal(kind, body)).map_err(|cause| io("write", &fresh, cause))?;
        file.sync_all().map_err(|cause| io("sync", &fresh, cause))?;
        std::fs::rename(&fresh, &path).map_err(|cause| io("rename", &fresh, cause))?;
        // The rename is durable only with its folder.
        let folder = File::open(&self.folder).map_err(|cause| io("open", &self.folder, cause))?;
        folder.sync_all().map_err(|cause| io("sync", &self.folder, cause))
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Option<Record>, StoreError> {
        let Some(body) = self.read(RECORD)? else { return Ok(None) };
        let foreign = |why: String| StoreError::Foreign { path: self.path(RECORD), why };
        Record::from_frame(&body).map(Some).map_err(|cause| foreign(cause.to_string()))
    }

    fn save(&mut self, record: &Record) -> Result<(), StoreError> {
        self.write(RECORD, &record.to_frame())
    }
}

pub(super) fn io(what: &'static str, path: &Path, cause: std::io::Error) -> StoreError {
    StoreError::Io { what, path: path.to_owned(), cause }
}

fn seal(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&kind.mark);
    out.extend_from_slice(&kind.version.to_le_bytes());
    out.extend_from_slice(&Sha256::digest(body));
    out.extend_from_slice(body);
    out
}

fn unseal(bytes: &[u8], kind: Kind) -> Result<&[u8], String> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or("it is too short")?;
    if bytes.len() as u64 > RECORD_BYTES_MAX {
        return Err("it is too long".to_owned());
    }
    if header[..4] != kind.mark {
        return Err("it does not begin like one".to_owned());
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != kind.version {
        return Err(format!("it has version {version}, this release reads {}", kind.version));
    }
    if header[6..] != Sha256::digest(body)[..] {
        return Err("its checksum does not fit: it is torn or damaged".to_owned());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::ids::{Epoch, MemberId, Rank};
    use phalanx_core::wire::message::Loss;

    fn folder(name: &str) -> PathBuf {
        let unique = crate::auth::JobKey::random().unwrap().to_hex();
        std::env::temp_dir().join(format!("phalanx-store-{name}-{}", &unique[..16]))
    }

    fn record(epoch: u64) -> Record {
        let loss = Loss { rank: Rank(1), member: MemberId(9), cause: "signal 9".to_owned() };
        Record { epoch: Epoch(epoch), decision: None, losses: vec![loss], former: vec![MemberId(3)] }
    }

    #[test]
    fn the_last_record_is_found_again_by_the_next_coordinator_and_only_one_holds_it() {
        let folder = folder("again");
        let mut store = FileStore::open(&folder).unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.save(&record(1)).unwrap();
        store.save(&record(2)).unwrap();
        assert!(matches!(FileStore::open(&folder), Err(StoreError::Held(_))));
        drop(store);
        assert_eq!(FileStore::open(&folder).unwrap().load().unwrap(), Some(record(2)));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_torn_damaged_or_foreign_file_is_refused() {
        let folder = folder("torn");
        let mut store = FileStore::open(&folder).unwrap();
        let good = seal(RECORD, &record(3).to_frame());
        let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
        bad.extend((0..good.len()).map(|at| {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            damaged
        }));
        bad.push([good.as_slice(), b"x"].concat());
        for bytes in bad {
            std::fs::write(store.path(RECORD), &bytes).unwrap();
            let answer = store.load();
            assert!(matches!(answer, Err(StoreError::Foreign { .. })), "{} bytes: {answer:?}", bytes.len());
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_half_written_successor_does_not_hurt_the_record() {
        let folder = folder("half");
        let mut store = FileStore::open(&folder).unwrap();
        store.save(&record(4)).unwrap();
        std::fs::write(folder.join("record.new"), b"PHX").unwrap();
        assert_eq!(store.load().unwrap(), Some(record(4)));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
