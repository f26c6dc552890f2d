//! The whole program on several hosts: `ollana serve` on machines that are network namespaces on one bridge, an Ollama
//! here and there, and applications that ask 127.0.0.1:11434 and know nothing of it.
//!
//! What is in the way between the hosts is real: bridges that are cut, datagrams that get lost, processes that are
//! killed, addresses that change. A test waits for what it says, never for a time; where it does take a time, the time
//! is what the test is about.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod app;
mod balance;
mod doctor;
#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
mod faults;
#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/node.rs"]
mod node;
mod refused;
mod roles;
#[path = "../support/shaped.rs"]
mod shaped;
mod sharing;
mod spread;
mod trust;

use std::process::ExitCode;
use std::time::Duration;

use netns::{nft_permitted, trial};

/// "A node started on a network with a running provider can use it within 1 s."
const SOON: Duration = Duration::from_secs(1);
/// What an Ollama that comes or goes may take to be lent or withdrawn.
const ROLE: Duration = Duration::from_secs(3);
/// A change of the network, or a node that comes back: noticed by the next look at the interfaces, the next dial or the
/// next beacon.
const CHANGE: Duration = Duration::from_secs(6);

fn main() -> ExitCode {
    let netns = netns::permitted();
    let nft = netns.clone().and_then(|()| nft_permitted());
    let mut arguments = libtest_mimic::Arguments::from_args();
    // They wait much more than they work.
    arguments.test_threads = arguments.test_threads.or(Some(6));
    macro_rules! trials {
        ($($permitted:ident: $($file:ident::$test:ident)*;)*) => {
            vec![$($(trial(concat!(stringify!($file), "::", stringify!($test)), $permitted.clone(), $file::$test),)*)*]
        };
    }
    let trials = trials! {
        nft:
            refused::a_node_behind_a_firewall_is_told_with_the_port_until_it_opens
            refused::a_firewall_on_this_machine_is_told_as_such
            faults::answers_are_right_although_a_fifth_of_all_datagrams_gets_lost
            sharing::a_peer_that_is_named_is_found_without_multicast_and_finds_who_named_it;
        netns:
            refused::a_node_set_up_anew_is_told_who_refuses_it_and_what_to_type
            refused::a_revoked_node_is_told_so_at_once_and_after_a_restart
            refused::a_provider_that_wants_each_key_trusted_says_so
            refused::an_interface_with_too_small_an_mtu_is_told
            refused::peers_that_were_named_and_do_not_answer_are_told
            refused::the_log_says_once_what_a_peer_may_do_and_is_used_for
            refused::an_invited_node_is_trusted_without_a_warning_before
            trust::two_nodes_with_one_key_both_stop_lending_and_say_so_until_one_has_another_key
            trust::a_revoked_peer_is_cut_off_at_once_and_stays_out_until_it_is_trusted_again
            trust::a_provider_that_is_revoked_gets_nothing_more
            faults::a_bridge_that_is_cut_for_ten_seconds_ends_no_answer_and_hangs_no_request
            faults::a_provider_that_is_killed_breaks_its_answers_and_the_next_request_is_served_by_another
            faults::a_node_that_comes_back_at_another_address_is_used_again
            faults::a_node_that_comes_back_at_its_address_is_used_again
            faults::a_node_whose_address_changes_while_it_runs_is_used_again
            faults::a_node_that_stops_lets_its_answers_finish_and_takes_nothing_new
            faults::a_node_that_stops_lets_the_answers_of_its_own_applications_finish
            sharing::an_application_without_an_ollama_is_answered_by_another_host_token_by_token
            sharing::two_users_are_spread_over_three_providers
            sharing::hosts_with_nothing_but_link_local_ipv6_use_each_other
            sharing::hosts_without_ipv4_use_each_other
            sharing::a_host_on_two_networks_uses_both_and_joins_neither_to_the_other
            sharing::a_host_on_two_networks_is_reached_by_the_other_when_one_is_cut
            sharing::a_node_without_a_network_uses_its_own_ollama_and_joins_the_network_that_comes
            balance::a_provider_that_is_killed_under_load_costs_nobody_an_answer_and_has_its_share_again_within_5_s
            balance::a_provider_that_stops_under_load_finishes_what_runs_and_nothing_is_lost
            balance::a_provider_whose_ollama_fails_at_once_draws_little
            balance::a_request_is_explained_after_the_fact
            spread::requests_that_always_wait_load_the_model_at_a_second_provider
            spread::few_long_requests_load_the_model_at_a_second_provider
            spread::requests_that_always_wait_load_the_model_at_all_of_eight_providers
            spread::two_models_that_are_both_waited_for_do_not_put_each_other_out
            spread::honest_warm_servers_share_the_work
            spread::warm_servers_that_say_no_durations_share_the_work
            spread::warm_servers_that_always_say_the_same_durations_share_the_work
            spread::warm_servers_whose_durations_are_zero_share_the_work
            spread::warm_servers_whose_durations_are_absurd_share_the_work
            spread::a_warm_server_that_lists_a_model_of_one_byte_has_its_share
            spread::a_slow_server_that_is_quick_again_has_its_share_again
            roles::an_ollama_that_starts_stops_and_starts_again_is_lent_withdrawn_and_lent_again
            roles::beside_an_ollama_the_listener_is_at_the_next_port
            roles::a_listener_of_ollana_is_never_taken_for_an_ollama
            roles::both_addresses_of_loopback_lead_to_the_mesh
            roles::an_ollama_at_either_address_of_loopback_holds_the_port
            roles::an_address_of_this_machine_in_ollama_host_is_shared
            roles::an_address_that_comes_and_goes_is_shared_while_it_is_here
            roles::a_port_that_is_taken_is_a_clear_message_and_not_half_a_start
            doctor::the_program_on_port_11434_is_named_and_its_end_noticed
            doctor::a_udp_port_that_was_replaced_is_told
            doctor::every_port_that_serve_uses_is_checked_before_it_starts
            doctor::a_port_that_serve_cannot_do_without_is_told_in_its_words
            trust::an_impostor_with_a_known_name_gets_nothing_and_is_reported
            trust::a_provider_that_turns_up_late_waits_for_a_person;
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}
