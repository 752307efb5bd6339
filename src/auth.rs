//! Proof that both ends of a connection belong to the same job, before either says anything else.
//!
//! ```text
//! acceptor                                   connector
//!   nonce_a (32)            ──────────▶
//!                           ◀──────────   mark (4), nonce_c (32), hello (17), mac (32)
//!   mac (32)                ──────────▶
//! ```
//!
//! A mac is HMAC-SHA256 under the job key over the version, the role of whoever makes it, the hello as each of the
//! two sees it, and both nonces. The key itself never travels. Fresh nonces of both sides keep a transcript from being
//! replayed, the role keeps a mac from being reflected, and the hello (purpose, sender, receiver) keeps it from
//! being moved to another connection. A stranger sees one nonce and nothing else, and costs a fixed number of bytes.
//!
//! What it does not do: encrypt, or guard the bytes that follow against somebody who can rewrite packets on the way.

use hmac::{Hmac, KeyInit, Mac};
use phalanx_core::ids::MemberId;
use sha2::Sha256;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const HELLO_BYTES: usize = 17;
const MARK_BYTES: usize = 4;
/// First bytes of a proof; the last one is the version of the handshake.
const MARK: [u8; MARK_BYTES] = *b"PHA\x01";
/// Keeps these macs apart from whatever else a job key may sign one day.
const LABEL: &[u8] = b"phalanx handshake 1";
const PROOF_BYTES: usize = MARK_BYTES + NONCE_BYTES + HELLO_BYTES + MAC_BYTES;

/// The secret that the processes of one job share.
#[derive(Clone, PartialEq, Eq)]
pub struct JobKey([u8; KEY_BYTES]);

impl JobKey {
    /// A fresh key from the system's random source.
    ///
    /// # Errors
    /// [`AuthError::NoRandom`] when the system has no random bytes to give.
    pub fn random() -> Result<Self, AuthError> {
        fresh().map(Self)
    }

    /// The key of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key as 64 lower-case hexadecimal digits, for handing it to a child process. This is the secret.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| HEX[usize::from(digit)]).collect()
    }
}

const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

impl std::fmt::Debug for JobKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JobKey(secret)")
    }
}

impl std::str::FromStr for JobKey {
    type Err = AuthError;

    fn from_str(text: &str) -> Result<Self, AuthError> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        let digits = digits.ok_or(AuthError::KeyText)?;
        if digits.len() != 2 * KEY_BYTES {
            return Err(AuthError::KeyText);
        }
        let mut key = [0; KEY_BYTES];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(key))
    }
}

/// What a connection is for; a proof for one purpose is worth nothing for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Purpose {
    /// Control messages between a member and the coordinator.
    Control = 1,
    /// A data link over TCP.
    DataTcp = 2,
    /// The exchange of a shared memory segment.
    DataShm = 3,
    /// A launcher on another host that follows the world and reports the ends of its children.
    Launcher = 4,
}

/// Who connects to whom, and what for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// What the connection is for.
    pub purpose: Purpose,
    /// Who speaks.
    pub member: MemberId,
    /// Who is spoken to.
    pub receiver: MemberId,
}

impl Hello {
    fn mirrored(self) -> Self {
        Self { purpose: self.purpose, member: self.receiver, receiver: self.member }
    }

    fn to_wire(self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[0] = self.purpose as u8;
        out[1..9].copy_from_slice(&self.member.0.to_le_bytes());
        out[9..17].copy_from_slice(&self.receiver.0.to_le_bytes());
        out
    }

    fn from_wire(bytes: &[u8; HELLO_BYTES]) -> Result<Self, AuthError> {
        let word = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&bytes[at..at + 8]);
            MemberId(u64::from_le_bytes(raw))
        };
        let purpose = match bytes[0] {
            1 => Purpose::Control,
            2 => Purpose::DataTcp,
            3 => Purpose::DataShm,
            4 => Purpose::Launcher,
            other => return Err(AuthError::Purpose(other)),
        };
        Ok(Self { purpose, member: word(1), receiver: word(9) })
    }
}

/// Why a peer was not believed. Whoever gets one closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// Text that is no key.
    #[error("a job key is 64 hexadecimal digits; check what the launcher handed to this process")]
    KeyText,
    /// The system's random source failed.
    #[error("the system has no random bytes to give; nothing can be proven without them")]
    NoRandom,
    /// Another program, or another version of the handshake.
    #[error("the peer does not speak this version of the handshake; is every rank the same version?")]
    Version,
    /// A purpose byte of no meaning.
    #[error("the peer connects for unknown purpose {0}; is every rank the same version?")]
    Purpose(u8),
    /// The mac does not fit the key.
    #[error("the peer does not hold this job's key; was it started by the same launcher?")]
    Key,
    /// The peer holds the key, but meant to reach another member or wanted something else.
    #[error("{member} wanted {receiver} for {purpose:?}, which is not here; is its peer table out of date?")]
    Misdirected {
        /// Who connected.
        member: MemberId,
        /// Whom it wanted.
        receiver: MemberId,
        /// What for.
        purpose: Purpose,
    },
    /// The handshake has failed before.
    #[error("the handshake has failed already; close the connection")]
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Role {
    Connector = 1,
    Acceptor = 2,
}

/// | from          | trigger                  | to          |
/// |---------------|--------------------------|-------------|
/// | `WantsNonce`  | 32 bytes (connector)     | `WantsMac`  |
/// | `WantsMac`    | valid mac (connector)    | `Proven`    |
/// | `WantsProof`  | valid proof (acceptor)   | `Proven`    |
/// | all but `Proven` | anything invalid      | `Failed`    |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    WantsNonce,
    WantsMac,
    WantsProof,
    Proven,
    Failed,
}

/// One end of the handshake: bytes in, bytes out, no socket.
///
/// Feed what arrives to [`handle_bytes`](Self::handle_bytes), write what [`poll_bytes`](Self::poll_bytes) gives,
/// stop when [`peer`](Self::peer) answers and `poll_bytes` is empty. On any error close the connection without
/// another byte.
pub struct Handshake {
    key: JobKey,
    /// As the connector sees it; the acceptor fills in the sender once it is proven.
    hello: Hello,
    /// As this side sees the peer, once proven.
    peer: Hello,
    /// What an acceptor may be wanted for besides its own purpose.
    also: Option<Purpose>,
    state: State,
    own_nonce: [u8; NONCE_BYTES],
    peer_nonce: [u8; NONCE_BYTES],
    arrived: [u8; PROOF_BYTES],
    arrived_bytes: usize,
    outgoing: Option<Vec<u8>>,
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake")
            .field("hello", &self.hello)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Handshake {
    /// The end that opened the connection. It first waits for the acceptor's nonce.
    ///
    /// # Errors
    /// [`AuthError::NoRandom`].
    pub fn connect(key: &JobKey, hello: Hello) -> Result<Self, AuthError> {
        Ok(Self::new(key, hello, hello.mirrored(), State::WantsNonce, fresh()?))
    }

    /// The end that was connected to. Believes whoever holds the key and means `me.member` and `me.purpose`;
    /// `me.receiver` is not looked at, since who connects is learned here.
    ///
    /// # Errors
    /// [`AuthError::NoRandom`].
    pub fn accept(key: &JobKey, me: Hello) -> Result<Self, AuthError> {
        let mut new = Self::new(key, me.mirrored(), me.mirrored(), State::WantsProof, fresh()?);
        new.outgoing = Some(new.own_nonce.to_vec());
        Ok(new)
    }

    /// As [`accept`](Self::accept), for an end that serves two purposes; [`peer`](Self::peer) says which one it was.
    ///
    /// # Errors
    /// [`AuthError::NoRandom`].
    pub fn accept_either(key: &JobKey, me: Hello, also: Purpose) -> Result<Self, AuthError> {
        Self::accept(key, me).map(|accepting| Self { also: Some(also), ..accepting })
    }

    fn new(key: &JobKey, hello: Hello, peer: Hello, state: State, own_nonce: [u8; NONCE_BYTES]) -> Self {
        Self {
            key: key.clone(),
            hello,
            peer,
            also: None,
            state,
            own_nonce,
            peer_nonce: [0; NONCE_BYTES],
            arrived: [0; PROOF_BYTES],
            arrived_bytes: 0,
            outgoing: None,
        }
    }

    /// Bytes still missing for the next step; a caller that reads no more than this never reads past the handshake.
    #[must_use]
    pub fn wanted_bytes(&self) -> usize {
        let whole = match self.state {
            State::WantsNonce => NONCE_BYTES,
            State::WantsMac => MAC_BYTES,
            State::WantsProof => PROOF_BYTES,
            State::Proven | State::Failed => 0,
        };
        whole - self.arrived_bytes
    }

    /// Takes bytes of the peer, and says how many; the rest belongs to what follows the handshake.
    ///
    /// # Errors
    /// When the peer is not to be believed; every later call fails too.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<usize, AuthError> {
        if self.state == State::Failed {
            return Err(AuthError::Failed);
        }
        let mut taken = 0;
        while self.wanted_bytes() > 0 && taken < bytes.len() {
            let part = &bytes[taken..bytes.len().min(taken + self.wanted_bytes())];
            self.arrived[self.arrived_bytes..self.arrived_bytes + part.len()].copy_from_slice(part);
            self.arrived_bytes += part.len();
            taken += part.len();
            if self.wanted_bytes() == 0 {
                self.advance().inspect_err(|_| {
                    self.state = State::Failed;
                    self.outgoing = None;
                    self.arrived_bytes = 0;
                })?;
            }
        }
        Ok(taken)
    }

    fn advance(&mut self) -> Result<(), AuthError> {
        match self.state {
            State::WantsNonce => {
                self.peer_nonce.copy_from_slice(&self.arrived[..NONCE_BYTES]);
                let mac = self.mac(Role::Connector).finalize().into_bytes();
                let parts: [&[u8]; 4] = [&MARK, &self.own_nonce, &self.hello.to_wire(), &mac];
                self.outgoing = Some(parts.concat());
                self.state = State::WantsMac;
            }
            State::WantsMac => {
                self.mac(Role::Acceptor)
                    .verify_slice(&self.arrived[..MAC_BYTES])
                    .map_err(|_| AuthError::Key)?;
                self.state = State::Proven;
            }
            State::WantsProof => {
                self.check_proof()?;
                self.outgoing = Some(self.mac(Role::Acceptor).finalize().into_bytes().to_vec());
                self.state = State::Proven;
            }
            State::Proven | State::Failed => {}
        }
        self.arrived_bytes = 0;
        Ok(())
    }

    fn check_proof(&mut self) -> Result<(), AuthError> {
        let (mark, rest) = self.arrived.split_at(MARK_BYTES);
        if mark != MARK {
            return Err(AuthError::Version);
        }
        let (nonce, rest) = rest.split_at(NONCE_BYTES);
        let (hello, mac) = rest.split_at(HELLO_BYTES);
        self.peer_nonce.copy_from_slice(nonce);
        let mut raw = [0; HELLO_BYTES];
        raw.copy_from_slice(hello);
        let (mine, theirs) = (self.hello, Hello::from_wire(&raw)?);
        self.hello = theirs;
        // The mac goes first: what a stranger claims is not worth an answer that tells it anything.
        self.mac(Role::Connector).verify_slice(mac).map_err(|_| AuthError::Key)?;
        let is_served = theirs.purpose == mine.purpose || self.also == Some(theirs.purpose);
        if theirs.receiver != mine.receiver || !is_served {
            let Hello { purpose, member, receiver } = theirs;
            return Err(AuthError::Misdirected { member, receiver, purpose });
        }
        self.peer = theirs;
        Ok(())
    }

    /// The mac that `role` makes over what both sides know by now.
    fn mac(&self, role: Role) -> Hmac<Sha256> {
        let connected = matches!(self.state, State::WantsNonce | State::WantsMac);
        let (acceptor, connector) = match connected {
            true => (&self.peer_nonce, &self.own_nonce),
            false => (&self.own_nonce, &self.peer_nonce),
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key.0)
            .expect("HMAC takes a key of any length, by definition");
        mac.update(LABEL);
        mac.update(&[role as u8]);
        mac.update(&self.hello.to_wire());
        mac.update(&self.hello.mirrored().to_wire());
        mac.update(acceptor);
        mac.update(connector);
        mac
    }

    /// Bytes to write to the peer, once.
    pub fn poll_bytes(&mut self) -> Option<Vec<u8>> {
        self.outgoing.take()
    }

    /// The peer as it introduced itself, once it has proven that it holds the key.
    #[must_use]
    pub fn peer(&self) -> Option<&Hello> {
        (self.state == State::Proven).then_some(&self.peer)
    }
}

fn fresh() -> Result<[u8; 32], AuthError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| AuthError::NoRandom)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: JobKey = JobKey([7; 32]);
    const FROM: MemberId = MemberId(3);
    const TO: MemberId = MemberId(5);

    fn hello() -> Hello {
        Hello { purpose: Purpose::DataTcp, member: FROM, receiver: TO }
    }

    fn ends(connector: &JobKey, acceptor: &JobKey) -> (Handshake, Handshake) {
        let accept = Handshake::accept(acceptor, hello().mirrored()).unwrap();
        (Handshake::connect(connector, hello()).unwrap(), accept)
    }

    /// Challenge, proof and answer of an honest run.
    fn transcript() -> [Vec<u8>; 3] {
        let (mut c, mut a) = ends(&KEY, &KEY);
        let challenge = a.poll_bytes().unwrap();
        assert_eq!(c.handle_bytes(&challenge), Ok(32));
        let proof = c.poll_bytes().unwrap();
        assert_eq!(a.handle_bytes(&proof), Ok(PROOF_BYTES));
        let answer = a.poll_bytes().unwrap();
        assert_eq!(c.handle_bytes(&answer), Ok(32));
        assert_eq!(c.peer(), Some(&hello().mirrored()));
        assert_eq!(a.peer(), Some(&hello()));
        [challenge, proof, answer]
    }

    #[test]
    fn both_sides_learn_who_the_peer_is_and_nothing_is_sent_twice() {
        let [challenge, proof, answer] = transcript();
        assert_eq!((challenge.len(), answer.len()), (32, 32), "a stranger sees one nonce");
        for sent in [&challenge, &proof, &answer] {
            assert!(!sent.windows(8).any(|w| w == [7; 8]), "the key never travels");
        }
        assert_ne!(challenge, transcript()[0], "nonces are fresh");
    }

    #[test]
    fn bytes_after_the_handshake_are_left_alone() {
        let (mut c, mut a) = ends(&KEY, &KEY);
        c.handle_bytes(&a.poll_bytes().unwrap()).unwrap();
        let mut bytes = c.poll_bytes().unwrap();
        bytes.extend_from_slice(b"data");
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(a.handle_bytes(&[*byte]), Ok(usize::from(at < PROOF_BYTES)), "byte {at}");
        }
        assert!(a.peer().is_some());
    }

    #[test]
    fn another_key_is_refused_on_both_sides() {
        let (mut c, mut a) = ends(&JobKey([8; 32]), &KEY);
        c.handle_bytes(&a.poll_bytes().unwrap()).unwrap();
        assert_eq!(a.handle_bytes(&c.poll_bytes().unwrap()), Err(AuthError::Key));
        assert_eq!(a.poll_bytes(), None, "not a byte after a failure");
        assert_eq!(a.handle_bytes(&[0; 8]), Err(AuthError::Failed));
        let [_, _, answer] = transcript();
        assert_eq!(c.handle_bytes(&answer), Err(AuthError::Key));
        assert!(a.peer().is_none() && c.peer().is_none());
    }

    #[test]
    fn a_recorded_transcript_is_worth_nothing() {
        let [challenge, proof, answer] = transcript();
        let (mut c, mut a) = ends(&KEY, &KEY);
        assert_eq!(a.handle_bytes(&proof), Err(AuthError::Key), "replayed to an acceptor");
        c.handle_bytes(&challenge).unwrap();
        assert_eq!(c.handle_bytes(&answer), Err(AuthError::Key), "replayed to a connector");
    }

    #[test]
    fn a_reflected_mac_is_worth_nothing() {
        // The connector's own mac, and its own nonce as the challenge.
        let mut c = Handshake::connect(&KEY, hello()).unwrap();
        let own = c.own_nonce;
        c.handle_bytes(&own).unwrap();
        let proof = c.poll_bytes().unwrap();
        assert_eq!(c.handle_bytes(&proof[PROOF_BYTES - MAC_BYTES..]), Err(AuthError::Key));
        // A member that connects to itself in the middle: the acceptor's challenge handed to another acceptor.
        let (mut first, mut second) = (ends(&KEY, &KEY).1, ends(&KEY, &KEY).1);
        let challenge = first.poll_bytes().unwrap();
        second.poll_bytes();
        let mut forged = [MARK.as_slice(), &challenge, &hello().to_wire()].concat();
        forged.extend_from_slice(&[0; MAC_BYTES]);
        assert_eq!(second.handle_bytes(&forged), Err(AuthError::Key));
    }

    #[test]
    fn a_proof_for_another_member_or_purpose_is_refused() {
        let elsewhere = Hello { receiver: MemberId(6), ..hello() };
        let control = Hello { purpose: Purpose::Control, ..hello() };
        for asked in [elsewhere, control] {
            let mut c = Handshake::connect(&KEY, asked).unwrap();
            let mut a = Handshake::accept(&KEY, hello().mirrored()).unwrap();
            c.handle_bytes(&a.poll_bytes().unwrap()).unwrap();
            let Hello { purpose, member, receiver } = asked;
            let expected = AuthError::Misdirected { member, receiver, purpose };
            assert_eq!(a.handle_bytes(&c.poll_bytes().unwrap()), Err(expected));
        }
    }

    #[test]
    fn an_end_that_serves_two_purposes_knows_which_and_refuses_the_third() {
        for (purpose, is_served) in
            [(Purpose::DataTcp, true), (Purpose::Launcher, true), (Purpose::Control, false)]
        {
            let mut c = Handshake::connect(&KEY, Hello { purpose, ..hello() }).unwrap();
            let mut a = Handshake::accept_either(&KEY, hello().mirrored(), Purpose::Launcher).unwrap();
            c.handle_bytes(&a.poll_bytes().unwrap()).unwrap();
            assert_eq!(a.handle_bytes(&c.poll_bytes().unwrap()).is_ok(), is_served, "{purpose:?}");
            assert_eq!(a.peer().map(|p| p.purpose), is_served.then_some(purpose));
            if let Some(answer) = a.poll_bytes() {
                assert_eq!(c.handle_bytes(&answer), Ok(MAC_BYTES), "the proof is of that purpose");
            }
        }
    }

    #[test]
    fn keys_parse_print_and_hide() {
        let key = JobKey::random().unwrap();
        assert_eq!(key.to_hex().parse(), Ok(key.clone()));
        assert_ne!(key, JobKey::random().unwrap());
        assert_eq!(format!("{key:?}"), "JobKey(secret)");
        let handshake = Handshake::connect(&KEY, hello()).unwrap();
        assert!(!format!("{handshake:?}").contains("7, 7"), "not through a handshake either");
        for bad in ["", "7", &"g".repeat(64), &"é".repeat(32), &"0".repeat(63), &"0".repeat(66)] {
            assert_eq!(bad.parse::<JobKey>(), Err(AuthError::KeyText), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_nor_prove(bytes: Vec<u8>, marked: bool, cut in 1usize..90) {
            let bytes = if marked { [&MARK[..], &bytes, &[0; 90]].concat() } else { bytes };
            let (mut c, mut a) = ends(&KEY, &KEY);
            for side in [&mut c, &mut a] {
                for part in bytes.chunks(cut) {
                    if side.handle_bytes(part).is_err() { break; }
                }
                prop_assert!(side.peer().is_none());
            }
        }

        #[test]
        fn any_flipped_bit_is_noticed(message in 0usize..3, at: prop::sample::Index, bit in 0u8..8) {
            let (mut c, mut a) = ends(&KEY, &KEY);
            let flip = |which: usize, mut bytes: Vec<u8>| {
                if which == message { let n = bytes.len(); bytes[at.index(n)] ^= 1 << bit; }
                bytes
            };
            c.handle_bytes(&flip(0, a.poll_bytes().unwrap())).unwrap();
            let proven = a.handle_bytes(&flip(1, c.poll_bytes().unwrap()));
            if message == 2 {
                prop_assert!(proven.is_ok());
                prop_assert!(c.handle_bytes(&flip(2, a.poll_bytes().unwrap())).is_err());
            } else {
                prop_assert!(proven.is_err());
                prop_assert!(a.poll_bytes().is_none());
            }
            prop_assert!(c.peer().is_none());
        }
    }
}
