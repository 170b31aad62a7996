//! Hosts `docker://`, `podman://` and `kubectl://`: a container is treated as this machine with a prefix.
//!
//! The settings that select the machine of the container are read once and kept: the program's environment variables,
//! and the current context of Docker and Kubernetes if no variable names one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use yaml_rust2::{Yaml, YamlLoader};

use serde::{Deserialize, Serialize};

use super::{HostError, check_name};

/// The scheme of a container's host, its program, and the environment variables that the program reads.
const ENGINES: [(&str, &str, &[&str]); 3] = [
    (
        "docker://",
        "docker",
        &[
            "HOME",
            "DOCKER_HOST",
            "DOCKER_CONTEXT",
            "DOCKER_CONFIG",
            "DOCKER_TLS",
            "DOCKER_TLS_VERIFY",
            "DOCKER_CERT_PATH",
        ],
    ),
    (
        "podman://",
        "podman",
        &[
            "HOME",
            "CONTAINER_HOST",
            "CONTAINER_CONNECTION",
            "CONTAINER_SSHKEY",
            "CONTAINERS_CONF",
            "CONTAINERS_STORAGE_CONF",
            "XDG_RUNTIME_DIR",
            "XDG_DATA_HOME",
            "XDG_CONFIG_HOME",
        ],
    ),
    ("kubectl://", "kubectl", &["HOME", "KUBECONFIG"]),
];
/// Maximum size of a configuration file, in bytes; larger ones are ignored.
const CONFIG_MAX: u64 = 4 << 20;

/// A container as the user named it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Container {
    program: &'static str,
    variables: &'static [&'static str],
    namespace: Option<String>,
    /// The name of the container or pod.
    name: String,
    /// The name of the container in the pod.
    in_pod: Option<String>,
}

/// The settings that select the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoint {
    /// The program's environment variables that are set; the others are unset.
    pub variables: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl Container {
    /// Parses a HOST word; `None` if it does not name a container.
    pub fn parse(typed: &str) -> Result<Option<Self>, HostError> {
        let found = ENGINES
            .into_iter()
            .find_map(|(scheme, program, variables)| {
                Some((program, variables, typed.strip_prefix(scheme)?))
            });
        let Some((program, variables, rest)) = found else {
            return Ok(None);
        };
        let parts: Vec<&str> = rest.split('/').collect();
        let (namespace, name, container) = match *parts.as_slice() {
            [name] => ("", name, None),
            [namespace, pod] if program == "kubectl" => (namespace, pod, None),
            [namespace, pod, container] if program == "kubectl" => {
                (namespace, pod, Some(container))
            }
            _ => {
                let (what, character) = ("container", '/');
                return Err(HostError::BadCharacter { what, character });
            }
        };
        let given = |part: &str| -> Result<String, HostError> {
            if part.is_empty() {
                return Err(HostError::EmptyHost);
            }
            check_name("container", part, REFUSED)?;
            Ok(part.to_owned())
        };
        Ok(Some(Self {
            program,
            variables,
            namespace: Some(namespace)
                .filter(|namespace| !namespace.is_empty())
                .map(given)
                .transpose()?,
            name: given(name)?,
            in_pod: container.map(given).transpose()?,
        }))
    }

    /// The command that runs a shell in the container.
    pub fn words<'a>(&'a self, chosen: &'a Endpoint) -> Vec<&'a str> {
        let mut words = vec![self.program, "exec", "-i"];
        let namespace = self.namespace.as_ref().or(chosen.namespace.as_ref());
        for (option, value) in [
            ("--context", chosen.context.as_ref()),
            ("--namespace", namespace),
        ] {
            if let Some(value) = value.filter(|_| self.program == "kubectl") {
                words.extend([option, value]);
            }
        }
        words.push(&self.name);
        if let Some(container) = &self.in_pod {
            words.extend(["-c", container]);
        }
        if self.program == "kubectl" {
            words.push("--");
        }
        words
    }

    /// The values of the program's environment variables; `None` means unset.
    pub fn environment<'a>(
        &'a self,
        chosen: &'a Endpoint,
    ) -> impl Iterator<Item = (&'static str, Option<&'a str>)> {
        let value = |name: &'static str| (name, chosen.variables.get(name).map(String::as_str));
        self.variables.iter().copied().map(value)
    }

    /// Reads the settings that select the machine now.
    pub fn choose(&self) -> Endpoint {
        let set = |name: &&'static str| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
            Some(((*name).to_owned(), value))
        };
        let mut chosen = Endpoint {
            variables: self.variables.iter().filter_map(set).collect(),
            ..Endpoint::default()
        };
        let variable = |name: &str| chosen.variables.get(name).map(PathBuf::from);
        let home = |name: &str| variable("HOME").map(|home| home.join(name));
        match self.program {
            "docker"
                if !["DOCKER_HOST", "DOCKER_CONTEXT"]
                    .iter()
                    .any(|name| chosen.variables.contains_key(*name)) =>
            {
                let directory = variable("DOCKER_CONFIG").or_else(|| home(".docker"));
                let context = directory.and_then(|directory| docker_context(&directory));
                let context = context.unwrap_or_else(|| "default".to_owned());
                chosen
                    .variables
                    .insert("DOCKER_CONTEXT".to_owned(), context);
            }
            "kubectl" => {
                let list = chosen.variables.get("KUBECONFIG");
                let files: Vec<PathBuf> = match list {
                    Some(list) => std::env::split_paths(list).collect(),
                    None => home(".kube/config").into_iter().collect(),
                };
                let texts = files.iter().filter_map(|file| read(file));
                let configs: Vec<Yaml> = texts
                    .filter_map(|text| YamlLoader::load_from_str(&text).ok())
                    .flatten()
                    .collect();
                let context = configs.iter().find_map(kube_context);
                chosen.namespace = context.as_ref().and_then(|context| {
                    let mut configs = configs.iter();
                    configs.find_map(|config| kube_namespace(config, context))
                });
                chosen.context = context;
            }
            _ => {}
        }
        chosen
    }
}

/// Characters special to a shell, and others that are not allowed in a name.
const REFUSED: &str = "'`\";&<>|(){}$,[]\\@:";

fn read(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let is_read = metadata.is_file() && metadata.len() <= CONFIG_MAX;
    is_read
        .then(|| std::fs::read_to_string(path).ok())
        .flatten()
}

fn docker_context(directory: &Path) -> Option<String> {
    let config: serde_json::Value =
        serde_json::from_str(&read(&directory.join("config.json"))?).ok()?;
    let context = config.get("currentContext")?.as_str()?;
    (!context.is_empty()).then(|| context.to_owned())
}

/// The current context in a configuration of kubectl.
fn kube_context(config: &Yaml) -> Option<String> {
    let context = config["current-context"].as_str()?;
    (!context.is_empty()).then(|| context.to_owned())
}

/// The namespace of a context, if set.
fn kube_namespace(config: &Yaml, context: &str) -> Option<String> {
    let mut contexts = config["contexts"].as_vec()?.iter();
    let named = contexts.find(|named| named["name"].as_str() == Some(context))?;
    let namespace = named["context"]["namespace"].as_str()?;
    (!namespace.is_empty()).then(|| namespace.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_read_and_become_a_prefix() {
        let chosen = Endpoint {
            context: Some("prod".into()),
            namespace: Some("apps".into()),
            ..Endpoint::default()
        };
        for (typed, words) in [
            ("docker://web", "docker exec -i web"),
            ("podman://a_b.c-1", "podman exec -i a_b.c-1"),
            (
                "kubectl://web-0",
                "kubectl exec -i --context prod --namespace apps web-0 --",
            ),
            (
                "kubectl:///web-0",
                "kubectl exec -i --context prod --namespace apps web-0 --",
            ),
            (
                "kubectl://ns/web-0",
                "kubectl exec -i --context prod --namespace ns web-0 --",
            ),
            (
                "kubectl:///web-0/app",
                "kubectl exec -i --context prod --namespace apps web-0 -c app --",
            ),
        ] {
            let container = Container::parse(typed).unwrap().unwrap();
            assert_eq!(container.words(&chosen).join(" "), words, "{typed}");
        }
        for typed in [
            "docker://",
            "docker://a/b",
            "docker://-v",
            "docker://a b",
            "podman://a;b",
            "kubectl://",
            "kubectl://ns/",
            "kubectl://ns/pod/",
            "kubectl://a/b/c/d",
            "kubectl://ns/--help",
            "docker://a:b",
        ] {
            assert!(Container::parse(typed).is_err(), "{typed}");
        }
        assert_eq!(Container::parse("web1"), Ok(None));
    }

    #[test]
    fn the_context_of_a_kubeconfig_is_found() {
        let text = "apiVersion: v1\nclusters:\n- cluster:\n    server: https://x\n  name: prod\ncontexts:\n- context:\n    \
            cluster: dev\n    extensions:\n    - extension:\n        version: v1\n      name: prod\n    namespace: no\n    \
            user: u\n  name: dev\n- context:\n    cluster: prod\n    namespace: apps\n    user: u\n  name: \"prod\"\n- context:\n    \
            cluster: x\n    user: u\n  name: bare\ncurrent-context: prod\nkind: Config\nusers:\n- name: prod\n";
        let json = r#"{"current-context": "prod", "contexts": [{"name": "bare", "context": {}},
            {"name": "prod", "context": {"namespace": "apps"}}, {"context": {"namespace": "no"}, "name": "dev"}]}"#;
        let config = |text| YamlLoader::load_from_str(text).unwrap().remove(0);
        for text in [text, json] {
            let config = config(text);
            assert_eq!(kube_context(&config).as_deref(), Some("prod"));
            for (context, namespace) in [
                ("prod", Some("apps")),
                ("dev", Some("no")),
                ("bare", None),
                ("none", None),
            ] {
                let found = kube_namespace(&config, context);
                assert_eq!(found.as_deref(), namespace, "{context}");
            }
        }
        assert_eq!(kube_context(&config("current-context: \"\"\n")), None);
        assert_eq!(kube_context(&config("- other\n")), None);
    }
}
