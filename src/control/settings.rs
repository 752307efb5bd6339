//! What a coordinator must have in common with the one before it on the same folder, besides its decisions: the address
//! that members dial, the key they hold, the rules they were given.
//!
//! The file holds the job key, so it is made readable by its owner only, and refused when others can read it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use phalanx_core::policy::Rules;
use phalanx_core::wire::codec::{DecodeError, Reader, Wire};

use super::store::{FileStore, Kind, Store, StoreError, io};
use crate::auth::JobKey;

const SETTINGS: Kind = Kind { name: "settings", mark: *b"PHXS", version: 1 };

/// Address, key and rules of a world.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Where the coordinator listens; never port 0.
    pub listen: SocketAddr,
    /// What members prove.
    pub key: JobKey,
    /// What everybody agrees on.
    pub rules: Rules,
    /// The run is over: nobody is left to go on with.
    pub is_over: bool,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others than the owner may read the key.
    #[error("{} holds the job key, and others than its owner may read it; `chmod 600` it, or start a new world in an \
        empty folder", .0.display())]
    Exposed(PathBuf),
    /// Decisions without the settings they were made under.
    #[error("{} holds the decisions of a world, but not its address and key; restore the file `settings`, or start a \
        new world in an empty folder", .0.display())]
    Missing(PathBuf),
}

impl Wire for Settings {
    fn put(&self, out: &mut Vec<u8>) {
        self.listen.put(out);
        self.key.to_hex().put(out);
        self.rules.put(out);
        self.is_over.put(out);
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let listen = Wire::get(from)?;
        let key = String::get(from)?.parse();
        let key = key.map_err(|_| DecodeError::Bad { what: "job key", value: 0 })?;
        Ok(Self { listen, key, rules: Wire::get(from)?, is_over: Wire::get(from)? })
    }
}

impl FileStore {
    /// What an earlier coordinator on this folder had; `None`: there was none.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or missing, or others may read it.
    pub fn settings(&mut self) -> Result<Option<Settings>, SettingsError> {
        let path = self.path(SETTINGS);
        let Some(body) = self.read(SETTINGS)? else {
            return match self.load()? {
                Some(_) => Err(SettingsError::Missing(self.folder().to_owned())),
                None => Ok(None),
            };
        };
        let found = std::fs::metadata(&path).map_err(|cause| io("look at", &path, cause))?;
        if found.permissions().mode() & 0o077 != 0 {
            return Err(SettingsError::Exposed(path));
        }
        let foreign = |cause: DecodeError| StoreError::Foreign { path, why: cause.to_string() };
        Ok(Some(Settings::from_frame(&body).map_err(foreign)?))
    }

    /// Replaces the settings. On return they are durable.
    ///
    /// # Errors
    /// When they cannot be written; those before then still stand.
    pub fn save_settings(&mut self, settings: &Settings) -> Result<(), SettingsError> {
        Ok(self.write(SETTINGS, &settings.to_frame())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::coordinator::Record;
    use phalanx_core::policy::Policy;

    /// A store in a folder that is gone at the end.
    struct Kept(FileStore);

    impl Kept {
        fn new() -> Self {
            let unique = JobKey::random().unwrap().to_hex();
            let folder = std::env::temp_dir().join(format!("phalanx-settings-{}", &unique[..16]));
            Self(FileStore::open(&folder).unwrap())
        }
    }

    impl Drop for Kept {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.0.folder());
        }
    }

    fn settings() -> Settings {
        Settings {
            listen: ([10, 0, 0, 7], 4711).into(),
            key: JobKey::random().unwrap(),
            rules: Rules::new(3, Policy::Replace),
            is_over: false,
        }
    }

    #[test]
    fn settings_come_back_and_are_private_also_over_a_leftover() {
        let mut kept = Kept::new();
        assert_eq!(kept.0.settings().unwrap(), None);
        let leftover = kept.0.folder().join("settings.new");
        std::fs::write(&leftover, b"half").unwrap();
        std::fs::set_permissions(&leftover, std::fs::Permissions::from_mode(0o644)).unwrap();
        let saved = settings();
        kept.0.save_settings(&saved).unwrap();
        assert_eq!(kept.0.settings().unwrap(), Some(saved));
        let path = kept.0.path(SETTINGS);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(kept.0.settings(), Err(SettingsError::Exposed(_))));
    }

    #[test]
    fn damaged_settings_and_decisions_without_any_are_refused() {
        let mut kept = Kept::new();
        kept.0.save_settings(&settings()).unwrap();
        let path = kept.0.path(SETTINGS);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(kept.0.settings(), Err(SettingsError::Store(StoreError::Foreign { .. }))));
        std::fs::remove_file(&path).unwrap();
        kept.0.save(&Record::default()).unwrap();
        assert!(matches!(kept.0.settings(), Err(SettingsError::Missing(_))));
    }
}
