//! Frames on a control connection: a 32-bit little-endian length, then so many bytes.

use phalanx_core::wire::message::FRAME_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Memory for a frame grows in steps of this as its bytes arrive, so an announced length alone costs nothing.
const GROWTH_BYTES: usize = 64 * 1024;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length out of bounds.
    #[error("a frame of {0} bytes was announced, at most {FRAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// The connection ended or failed inside a frame.
    #[error("the connection broke inside a frame: {0}")]
    Broken(#[from] std::io::Error),
}

/// The next frame; `None` when the peer closed the connection between two frames.
///
/// Not cancel safe: a dropped future may have taken part of a frame.
///
/// # Errors
/// When the length is out of bounds, or the connection breaks inside a frame.
pub async fn read_frame<R: AsyncRead + Unpin>(from: &mut R) -> Result<Option<Vec<u8>>, FrameError> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        match from.read(&mut length[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            n => have += n,
        }
    }
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(bytes));
    }
    let mut frame = Vec::new();
    while frame.len() < bytes {
        let start = frame.len();
        frame.resize(bytes.min(start + GROWTH_BYTES), 0);
        from.read_exact(&mut frame[start..]).await?;
    }
    Ok(Some(frame))
}

/// Writes `frame` with its length.
///
/// # Errors
/// When it is longer than any reader accepts, or the connection breaks.
pub async fn write_frame<W: AsyncWrite + Unpin>(to: &mut W, frame: &[u8]) -> Result<(), FrameError> {
    let length = u32::try_from(frame.len()).ok().filter(|_| frame.len() <= FRAME_BYTES_MAX);
    let length = length.ok_or(FrameError::TooLong(frame.len()))?;
    // One write for both: a small frame then is one packet.
    let mut whole = Vec::with_capacity(4 + frame.len());
    whole.extend_from_slice(&length.to_le_bytes());
    whole.extend_from_slice(frame);
    to.write_all(&whole).await?;
    to.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<F: Future>(work: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn frames_pass_one_after_another_and_the_end_is_seen() {
        run(async {
            let mut wire = Vec::new();
            let long = vec![7; 3 * GROWTH_BYTES + 1];
            for frame in [&b""[..], b"abc", &long] {
                write_frame(&mut wire, frame).await.unwrap();
            }
            let mut from = wire.as_slice();
            assert_eq!(read_frame(&mut from).await.unwrap().as_deref(), Some(&b""[..]));
            assert_eq!(read_frame(&mut from).await.unwrap().as_deref(), Some(&b"abc"[..]));
            assert_eq!(read_frame(&mut from).await.unwrap(), Some(long));
            assert_eq!(read_frame(&mut from).await.unwrap(), None);
        });
    }

    #[test]
    fn a_cut_frame_and_a_long_one_are_errors() {
        run(async {
            let mut wire = Vec::new();
            write_frame(&mut wire, b"abcdef").await.unwrap();
            for cut in 1..wire.len() {
                let answer = read_frame(&mut &wire[..cut]).await;
                assert!(matches!(answer, Err(FrameError::Broken(_))), "cut at {cut}: {answer:?}");
            }
            let announced = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
            assert!(matches!(read_frame(&mut announced.as_slice()).await, Err(FrameError::TooLong(_))));
            let too_long = vec![0; FRAME_BYTES_MAX + 1];
            assert!(matches!(write_frame(&mut Vec::new(), &too_long).await, Err(FrameError::TooLong(_))));
        });
    }
}
