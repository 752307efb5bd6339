//! What every transport promises, as one suite. A transport joins with a `World` of its own and one line below.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "transport_contract/cases.rs"]
mod cases;
#[path = "transport_contract/mesh.rs"]
mod mesh;
#[path = "transport_contract/shm.rs"]
mod shm;
#[path = "transport_contract/tcp.rs"]
mod tcp;

/// One test per case, over this world.
macro_rules! contract {
    ($module:ident, $world:ty) => {
        contract!(@cases $module, $world,
            order_is_kept_for_all_sizes,
            a_full_link_refuses_and_recovers,
            memory_posted_is_free_on_return,
            an_old_epoch_is_dropped_and_counted,
            a_new_epoch_is_held_back_until_opened,
            consume_after_open_takes_nothing_of_the_new_epoch,
            nothing_of_a_revoked_member_is_handed_out,
            a_member_outside_the_table_is_heard_when_it_is_named,
            links_of_survivors_outlive_a_view,
            a_death_is_one_fault_and_hurts_nobody_else,
            another_key_gets_nowhere,
            a_mesh_under_random_traffic_mixes_nothing_up,
            a_parked_receiver_is_woken_by_an_arrival,
            a_parked_sender_is_woken_by_room,
            an_unseen_arrival_forbids_parking_and_an_unwanted_one_does_not,
        );
    };
    (@cases $module:ident, $world:ty, $($case:ident),* $(,)?) => {
        mod $module {
            $(#[test] fn $case() {
                let world = <$world>::default();
                match super::mesh::World::missing(&world) {
                    None => super::cases::$case(&world),
                    Some(why) => println!("skipped because {why}"),
                }
            })*
        }
    };
}

contract!(over_shared_memory, super::shm::ShmWorld);
contract!(over_tcp, super::tcp::TcpWorld);
contract!(over_tcp_v6, super::tcp::TcpV6World);
