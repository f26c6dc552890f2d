//! The servers that people run.

use crate::node::{Node, until};
use crate::shaped::{self, Shaped, Table};

/// A server, and what is to be seen of it.
struct Known {
    name: &'static str,
    table: fn() -> Table,
    /// `api`, and `version` or `server`, as `status` shows them.
    shown: (&'static str, &'static str),
    /// Names that an application may ask for, each with a path.
    answered: &'static [(&'static str, &'static str)],
    /// A name that stands in the list at this path.
    listed: &'static [(&'static str, &'static str)],
    /// The flaws that are said of it.
    flaws: &'static [&'static str],
}

const CHAT: &str = "/api/chat";
const V1_CHAT: &str = "/v1/chat/completions";

const KNOWN: [Known; 10] = [
    Known {
        name: "Ollama 0.24",
        table: || shaped::ollama("0.24.0"),
        shown: ("ollama", "0.24.0"),
        answered: &[(CHAT, "smollm2"), (V1_CHAT, "smollm2:latest")],
        listed: &[("/api/tags", "smollm2:latest"), ("/v1/models", "smollm2:latest"), ("/api/ps", "smollm2:latest")],
        flaws: &[],
    },
    Known {
        name: "Ollama 0.33",
        table: || shaped::ollama("0.33.0"),
        shown: ("ollama", "0.33.0"),
        answered: &[(CHAT, "SMOLLM2:latest"), (V1_CHAT, "smollm2")],
        listed: &[("/api/tags", "smollm2:latest")],
        flaws: &[],
    },
    Known {
        name: "llama-server",
        table: shaped::llama_server,
        shown: ("openai", "llama.cpp"),
        answered: &[(V1_CHAT, "qwen"), (V1_CHAT, "gpt-3.5-turbo")],
        listed: &[("/v1/models", "qwen")],
        flaws: &[],
    },
    Known {
        name: "llama-swap",
        table: shaped::llama_swap,
        shown: ("openai", "llama-swap"),
        answered: &[(V1_CHAT, "qwen"), (V1_CHAT, "gemma"), (V1_CHAT, "gpt-4")],
        listed: &[("/v1/models", "gemma")],
        flaws: &[],
    },
    Known {
        name: "vLLM",
        table: shaped::vllm,
        shown: ("openai", "vLLM"),
        answered: &[(V1_CHAT, "Qwen/Qwen3-8B")],
        listed: &[("/v1/models", "Qwen/Qwen3-8B")],
        flaws: &[],
    },
    Known {
        name: "LM Studio",
        table: shaped::lm_studio,
        shown: ("openai", "LM Studio"),
        answered: &[(V1_CHAT, "qwen3-8b")],
        listed: &[("/v1/models", "qwen3-8b")],
        flaws: &[],
    },
    Known {
        name: "KoboldCpp",
        table: shaped::koboldcpp,
        shown: ("ollama", "0.7.0"),
        answered: &[(CHAT, "koboldcpp"), (V1_CHAT, "koboldcpp/Qwen3-8B"), (CHAT, "koboldcpp/Qwen3-8B:latest")],
        listed: &[("/v1/models", "koboldcpp/Qwen3-8B"), ("/api/tags", "koboldcpp")],
        flaws: &[],
    },
    Known {
        name: "LocalAI",
        table: shaped::localai,
        shown: ("ollama", "0.9.0"),
        answered: &[(CHAT, "qwen3-8b"), (V1_CHAT, "qwen3-8b")],
        listed: &[("/api/tags", "qwen3-8b:latest"), ("/v1/models", "qwen3-8b")],
        flaws: &[],
    },
    Known {
        name: "Lemonade",
        table: shaped::lemonade,
        shown: ("ollama", "0.16.1"),
        answered: &[(CHAT, "Qwen3-0.6B-GGUF"), (V1_CHAT, "Gemma-3-4b-it-GGUF")],
        listed: &[("/api/tags", "Gemma-3-4b-it-GGUF:latest"), ("/api/ps", "Qwen3-0.6B-GGUF:latest")],
        flaws: &[],
    },
    Known {
        name: "Docker Model Runner",
        table: shaped::docker_model_runner,
        shown: ("ollama", "0.1.0"),
        answered: &[(CHAT, "docker.io/ai/smollm2:latest"), (CHAT, "ai/smollm2"), (CHAT, "ai/smollm2:latest")],
        listed: &[("/api/tags", "docker.io/ai/smollm2:latest")],
        flaws: &["/v1/models is answered 404"],
    },
];

#[test]
fn every_known_server_is_shared() {
    let mut server = Shaped::start((KNOWN[0].table)());
    let provider = Node::sharing("gpu", format!("http://{}", server.addr()));
    let user = Node::using("laptop", &[&provider]);
    for (n, known) in KNOWN.iter().enumerate() {
        let Known { name, shown: (api, version), .. } = known;
        if n > 0 {
            server.becomes((known.table)());
        }
        let is = |shown: &serde_json::Value| {
            let said = shown["version"].as_str().or(shown["server"].as_str());
            shown["healthy"] == true && shown["lent"] == true && shown["api"] == *api && said == Some(version)
        };
        let shown = provider.until_server(name, is);
        for (path, model) in known.answered {
            // Until the user's node has heard of the change.
            until(
                || {
                    let reply = user.chat(path, model);
                    (reply.status == 200 && reply.peer == "gpu" && reply.body.contains("hello")).then_some(())
                },
                || format!("{name}: {path} {model}: {:?}\n{}", user.chat(path, model), provider.log()),
            );
        }
        for (path, model) in known.listed {
            let reply = user.get(path);
            assert!(reply.status == 200 && reply.body.contains(&format!("\"{model}\"")), "{name}: {path}: {reply:?}");
        }
        let flaws: Vec<&str> =
            shown["flaws"].as_array().into_iter().flatten().map(|flaw| flaw.as_str().unwrap()).collect();
        assert_eq!(flaws.len(), known.flaws.len(), "{name}: {flaws:?}");
        for flaw in known.flaws {
            assert!(flaws.iter().any(|said| said.contains(flaw)), "{name}: {flaws:?}");
        }
    }
}

#[test]
fn the_engines_of_docker_are_shared_at_v1() {
    let server = Shaped::start(shaped::docker_model_runner());
    for path in ["engines", "engines/v1"] {
        let node = Node::sharing("gpu", format!("http://{}/{path}", server.addr()));
        let shown = node.until_server("lent", |shown| shown["lent"] == true);
        assert_eq!((shown["api"].as_str(), shown["server"].as_str()), (Some("openai"), Some("Docker Model Runner")));
        for model in ["docker.io/ai/smollm2:latest", "ai/smollm2"] {
            assert_eq!(node.chat(V1_CHAT, model).status, 200, "{model}");
        }
    }
}

#[test]
fn the_path_of_the_api_may_stand_in_the_address() {
    let server = Shaped::start(shaped::vllm());
    let node = Node::sharing("gpu", format!("http://{}/v1", server.addr()));
    let shown = node.until_server("lent", |shown| shown["lent"] == true);
    assert_eq!(shown["url"], format!("http://{}/", server.addr()));
    assert_eq!(node.chat(V1_CHAT, "Qwen/Qwen3-8B").status, 200);
    assert!(node.log().contains("/v1 was left out of its address"), "{}", node.log());

    let server = Shaped::start(shaped::ollama("0.33.0"));
    let node = Node::sharing("gpu", format!("{}/api/", server.addr()));
    node.until_server("lent", |shown| shown["lent"] == true);
    assert_eq!(node.chat(CHAT, "smollm2").status, 200);
}
