//! The tree by which a chunk's Final spreads from its owner.
use crate::ids::Rank;
/// stub
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Spread {
    /// stub
    Star,
}
impl Spread {
    /// stub
    pub fn receives(&self, _o: Rank, _r: Rank, _n: u32) -> bool { true }
    /// stub
    pub fn ancestors(&self, o: Rank, _r: Rank, _n: u32) -> impl Iterator<Item = Rank> { [o].into_iter() }
}
