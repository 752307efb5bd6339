//! I6: nothing of another epoch is read, nor of a member that is shut out.

use phalanx_core::ids::{Epoch, MemberId};

/// What a member reads: a message of `from` that was sent in `sent`, while it is in `now`.
#[must_use]
pub fn stale(me: MemberId, from: MemberId, sent: Epoch, now: Epoch, is_revoked: bool) -> Option<String> {
    if is_revoked {
        return Some(format!("I6 fence: {me} reads a message of {from}, which is shut out, in {now}"));
    }
    (sent != now).then(|| format!("I6 fence: {me} reads a message of {sent} in {now}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_on_another_epoch_and_on_one_that_is_shut_out() {
        let read = |sent, is_revoked| stale(MemberId(1), MemberId(2), Epoch(sent), Epoch(3), is_revoked);
        assert_eq!(read(3, false), None);
        assert!(read(2, false).is_some_and(|text| text.contains("e2 in e3")));
        assert!(read(3, true).is_some_and(|text| text.contains("m2")));
    }
}
