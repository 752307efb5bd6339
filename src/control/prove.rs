//! The handshake of [`crate::auth`] over an async stream.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::auth::{AuthError, Handshake, Hello};

/// A handshake that takes longer is given up, on both sides.
pub(super) const PROVE_WITHIN: Duration = Duration::from_secs(5);

/// Why a peer is not talked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProveError {
    /// It is not to be believed.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The connection broke.
    #[error("the connection ended during the handshake ({0}); do both sides hold the same job key?")]
    Broken(#[from] std::io::Error),
    /// It took too long.
    #[error("the handshake took longer than {} s", PROVE_WITHIN.as_secs())]
    Slow(#[from] tokio::time::error::Elapsed),
}

impl ProveError {
    /// Whether the peer ended the handshake of its own accord, as it does where the keys differ: without a word.
    pub(super) fn is_mistrust(&self) -> bool {
        match self {
            Self::Auth(_) => true,
            Self::Broken(cause) => cause.kind() == std::io::ErrorKind::UnexpectedEof,
            Self::Slow(_) => false,
        }
    }
}

/// Runs `handshake` to its end, and says who the peer is. Reads no byte past it.
pub(super) async fn prove<S>(stream: &mut S, mut handshake: Handshake) -> Result<Hello, ProveError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::time::timeout(PROVE_WITHIN, async {
        let mut bytes = [0; 256];
        let mut heard = false;
        loop {
            while let Some(out) = handshake.poll_bytes() {
                stream.write_all(&out).await?;
            }
            if let Some(peer) = handshake.peer() {
                return Ok(*peer);
            }
            let want = handshake.wanted_bytes().min(bytes.len());
            let got = stream.read(&mut bytes[..want]).await?;
            if got == 0 {
                // A peer that never spoke may have been stopped, or stand behind a proxy that has nobody to ask.
                let silent = std::io::ErrorKind::ConnectionAborted;
                let kind = if heard { std::io::ErrorKind::UnexpectedEof } else { silent };
                return Err(std::io::Error::from(kind).into());
            }
            heard = true;
            handshake.handle_bytes(&bytes[..got])?;
        }
    })
    .await?
}
