//! Other servers than Ollama, lent by one node and used from another: simulated ones of the OpenAI API and of gRPC with
//! the nodes in this process, and a real `llama-server` with the program itself.
//!
//! The real one wants a `llama-server` that runs on this processor and a model, gRPC by its own makers the package
//! `grpcio` ([`tools`]). Without them its tests are reported as ignored, with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
#[path = "../support/grpc.rs"]
mod grpc_server;
#[path = "../mesh/node.rs"]
mod node;
#[path = "../support/openai_only.rs"]
mod openai_only;
#[path = "../support/tools.rs"]
mod tools;

mod grpc;
mod grpcio;
mod llama_server;
mod openai;
mod watch;

use std::process::ExitCode;

use libtest_mimic::Trial;

fn main() -> ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    macro_rules! trials {
        ($($file:ident::$test:ident)*) => {
            vec![$(simulated(concat!(stringify!($file), "::", stringify!($test)), || in_a_runtime($file::$test()))),*]
        };
    }
    let mut trials = trials! {
        openai::a_llama_server_is_lent_and_used_at_v1
        openai::without_an_ollama_its_api_says_so_and_its_lists_are_empty
        openai::what_a_server_has_beside_inference_is_its_owners_alone
        openai::what_a_peer_sends_it_arrives_as_it_was_written
        openai::models_of_both_kinds_are_one_list_and_each_is_asked_what_it_understands
        openai::a_node_that_was_chosen_answers_with_its_own_list
        openai::its_errors_come_as_it_says_them
        watch::each_server_is_told_by_its_answers
        watch::one_that_loads_its_model_is_lent_when_it_has
        watch::a_server_that_another_kind_takes_the_place_of_is_met_anew
        watch::a_server_with_one_thread_is_not_held_up
        watch::an_h2c_server_is_lent_only_if_it_was_named
        grpc::all_four_shapes_pass
        grpc::in_a_bidirectional_call_each_message_is_answered_before_the_next_is_sent
        grpc::errors_pass_with_and_without_messages_before_them
        grpc::a_call_that_is_given_up_ends_at_the_server_and_no_other_does
        grpc::answers_that_nobody_reads_hold_up_no_other
        grpc::a_large_message_passes_both_ways
        grpc::a_peer_gets_nothing_of_the_other_apis
        grpc::beside_an_ollama_calls_go_where_they_are_understood
        grpc::an_ollama_that_speaks_both_versions_gets_each_request_in_its_own
        grpc::an_ollama_behind_http2_alone_is_an_ollama
        grpc::what_only_says_it_is_grpc_reaches_an_ollama_all_the_same
    };
    trials.extend(llama_server::trials());
    trials.push(grpcio::trial());
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn simulated(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

fn in_a_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Box::pin(test));
}
