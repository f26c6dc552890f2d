//! Attacks that need a network or a user of their own: beacons of every bad kind, a listener that is open to other machines,
//! another user of the same machine. The nodes are the program itself, on hosts that are network namespaces.
//!
//! What a beacon has caused is seen by who is dialled: the attacker waits at the ports that its beacons name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
#[path = "../hosts/app.rs"]
mod app;
#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/node.rs"]
mod node;

#[path = "link/beacons.rs"]
mod beacons;
#[path = "link/guests.rs"]
mod guests;
#[path = "link/users.rs"]
mod users;

use std::process::ExitCode;

use netns::trial;

fn main() -> ExitCode {
    let netns = netns::permitted();
    let other_user = netns.clone().and_then(|()| users::permitted());
    let mut arguments = libtest_mimic::Arguments::from_args();
    // They wait much more than they work.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    macro_rules! trials {
        ($($permitted:ident: $($file:ident::$test:ident)*;)*) => {
            vec![$($(trial(concat!(stringify!($file), "::", stringify!($test)), $permitted.clone(), $file::$test),)*)*]
        };
    }
    let trials = trials! {
        netns:
            beacons::a_flood_of_queries_from_forged_sources_brings_fewer_bytes_out_than_in
            beacons::a_hundred_thousand_invented_ids_cause_few_dials_and_hide_nobody
            beacons::a_flood_of_beacons_hides_no_silent_node_and_fills_no_list
            beacons::a_trusted_id_with_a_wrong_address_takes_nothing_away
            beacons::our_own_id_from_elsewhere_is_no_clone
            beacons::an_address_in_a_beacon_is_nobodys_who_did_not_send_it
            beacons::broken_giant_old_and_odd_beacons_cause_no_dial_and_later_fields_are_no_harm
            beacons::from_off_the_link_by_unicast_or_with_another_ttl_it_causes_no_dial
            beacons::forged_goodbyes_part_nobody
            guests::other_machines_leave_an_open_listener_to_its_own
            guests::behind_an_open_listener_a_node_that_may_manage_is_a_guest;
        other_user:
            users::another_user_is_refused_at_the_socket_even_if_it_lets_itself_be_opened;
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}
