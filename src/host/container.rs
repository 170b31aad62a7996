//! `docker://`, `podman://` and `kubectl://`: a container is this machine behind a prefix.
//!
//! What chooses the machine that the container is on is read once and kept: the variables that the program goes by, and
//! the current context of Docker and Kubernetes where no variable names one.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use yaml_rust2::parser::Parser;
use yaml_rust2::scanner::TScalarStyle;
use yaml_rust2::{Event, ScanError, Yaml};

use super::{HostError, check_name};

/// The words that begin a container's host, the program each means, and the variables that it goes by.
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
/// The largest configuration file that is read.
const CONFIG_MAX: u64 = 4 << 20;

/// A container, as the user named it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Container {
    program: &'static str,
    variables: &'static [&'static str],
    namespace: Option<String>,
    /// The container's name, or the pod's.
    name: String,
    /// The container in the pod.
    in_pod: Option<String>,
}

/// What chooses the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chosen {
    /// The program's variables that are set; the others are not.
    pub variables: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl Container {
    /// Reads a host's word; `None` where it names no container.
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

    /// The command that goes in front of the container's shell.
    pub fn words<'a>(&'a self, chosen: &'a Chosen) -> Vec<&'a str> {
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

    /// What each of the program's variables is to be; unset where that is none.
    pub fn environment<'a>(
        &'a self,
        chosen: &'a Chosen,
    ) -> impl Iterator<Item = (&'static str, Option<&'a str>)> {
        let value = |name: &'static str| (name, chosen.variables.get(name).map(String::as_str));
        self.variables.iter().copied().map(value)
    }

    /// Reads what chooses the machine now.
    pub fn choose(&self) -> Chosen {
        let set = |name: &&'static str| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
            Some(((*name).to_owned(), value))
        };
        let mut chosen = Chosen {
            variables: self.variables.iter().filter_map(set).collect(),
            ..Chosen::default()
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
                (chosen.context, chosen.namespace) = kube_choice(texts);
            }
            _ => {}
        }
        chosen
    }
}

/// What a shell would act on.
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

/// The current context and its namespace, by the texts of kubectl's configuration files.
pub(crate) fn kube_choice(texts: impl Iterator<Item = String>) -> (Option<String>, Option<String>) {
    let configs: Vec<KubeConfig> = texts
        .filter_map(|text| KubeConfig::read(&text).ok())
        .flatten()
        .collect();
    let context = configs.iter().find_map(|config| config.current.clone());
    let namespace = context.as_ref().and_then(|context| {
        let mut configs = configs.iter();
        configs.find_map(|config| config.namespace(context))
    });
    (context, namespace)
}

/// What a configuration of kubectl's says of contexts.
///
/// It is taken from the parser's events. A tree of all values could be deeper than the stack, and much larger than the text:
/// an alias stands for a copy of what it names.
#[derive(Default)]
struct KubeConfig {
    current: Option<String>,
    contexts: Vec<KubeContext>,
}

#[derive(Default)]
struct KubeContext {
    name: Option<String>,
    namespace: Option<String>,
}

/// What a value is in.
enum Level {
    Sequence,
    /// The key whose value comes, if that is next.
    Mapping {
        key: Option<String>,
        is_key_next: bool,
    },
}

impl Level {
    fn key(&self) -> Option<&str> {
        match self {
            Self::Sequence => None,
            Self::Mapping { key, .. } => key.as_deref(),
        }
    }

    /// A key or a value of it has come: a text, or something else.
    fn go_on(&mut self, text: Option<String>) {
        if let Self::Mapping { key, is_key_next } = self {
            *key = text.filter(|_| *is_key_next);
            *is_key_next = !*is_key_next;
        }
    }
}

impl KubeConfig {
    /// The configurations of a text: several stand between `---`.
    fn read(text: &str) -> Result<Vec<Self>, ScanError> {
        let mut parser = Parser::new_from_str(text);
        let mut configs: Vec<Self> = Vec::new();
        let mut levels: Vec<Level> = Vec::new();
        let mut anchored: HashMap<usize, String> = HashMap::new();
        loop {
            let text = match parser.next_token()?.0 {
                Event::StreamEnd => return Ok(configs),
                Event::DocumentStart => {
                    configs.push(Self::default());
                    levels.clear();
                    continue;
                }
                Event::SequenceStart(..) => {
                    levels.push(Level::Sequence);
                    continue;
                }
                Event::MappingStart(..) => {
                    if let (Some(config), true) = (configs.last_mut(), is_context(&levels)) {
                        config.contexts.push(KubeContext::default());
                    }
                    levels.push(Level::Mapping {
                        key: None,
                        is_key_next: true,
                    });
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    levels.pop();
                    None
                }
                Event::Scalar(text, style, anchor, _) => {
                    // A number, say, is no text.
                    let text = match style {
                        TScalarStyle::Plain => Yaml::from_str(&text).into_string(),
                        _ => Some(text),
                    };
                    anchored.extend(text.clone().map(|text| (anchor, text)));
                    text
                }
                Event::Alias(anchor) => anchored.get(&anchor).cloned(),
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => continue,
            };
            if let (Some(config), Some(text)) = (configs.last_mut(), &text) {
                config.take(&levels, text);
            }
            if let Some(level) = levels.last_mut() {
                level.go_on(text);
            }
        }
    }

    /// Takes a text that stands at this place.
    fn take(&mut self, levels: &[Level], text: &str) {
        let context = self.contexts.last_mut();
        let slot = match levels {
            [top] if top.key() == Some("current-context") => Some(&mut self.current),
            [above @ .., own] if is_context(above) && own.key() == Some("name") => {
                context.map(|context| &mut context.name)
            }
            [above @ .., outer, own]
                if is_context(above)
                    && outer.key() == Some("context")
                    && own.key() == Some("namespace") =>
            {
                context.map(|context| &mut context.namespace)
            }
            _ => None,
        };
        if let Some(slot) = slot.filter(|_| !text.is_empty()) {
            slot.get_or_insert_with(|| text.to_owned());
        }
    }

    /// The namespace of a context.
    fn namespace(&self, context: &str) -> Option<String> {
        let mut contexts = self.contexts.iter();
        let named = contexts.find(|named| named.name.as_deref() == Some(context));
        named?.namespace.clone()
    }
}

/// Whether what is within is one of the contexts.
fn is_context(levels: &[Level]) -> bool {
    matches!(levels, [top, Level::Sequence] if top.key() == Some("contexts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_read_and_become_a_prefix() {
        let chosen = Chosen {
            context: Some("prod".into()),
            namespace: Some("apps".into()),
            ..Chosen::default()
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
        for text in [text, json] {
            for (context, namespace) in [
                ("prod", Some("apps")),
                ("dev", Some("no")),
                ("bare", None),
                ("none", None),
            ] {
                let chosen = format!("current-context: {context}\n");
                let texts = [chosen, text.to_owned()];
                let expected = (Some(context.to_owned()), namespace.map(str::to_owned));
                assert_eq!(kube_choice(texts.into_iter()), expected, "{context}");
            }
            let (context, _) = kube_choice([text.to_owned()].into_iter());
            assert_eq!(context.as_deref(), Some("prod"));
        }
        for (text, context, namespace) in [
            ("current-context: \"\"\n", None, None),
            ("current-context: 5\n", None, None),
            ("current-context: '5'\n", Some("5"), None),
            ("- other\n", None, None),
            ("current-context: a\n  bad: [\n", None, None),
            ("a: {current-context: b}\n", None, None),
            (
                "[current-context]: b\ncurrent-context: c\n",
                Some("c"),
                None,
            ),
            ("a: 1\n---\ncurrent-context: b\n", Some("b"), None),
            (
                "n: &n apps\ncurrent-context: &c p\ncontexts: [{name: *c, context: {namespace: *n}}]\n",
                Some("p"),
                Some("apps"),
            ),
        ] {
            let (own_context, own_namespace) = kube_choice([text.to_owned()].into_iter());
            assert_eq!(own_context.as_deref(), context, "{text}");
            assert_eq!(own_namespace.as_deref(), namespace, "{text}");
        }
    }

    #[test]
    fn a_kubeconfig_costs_no_more_than_its_size() {
        // Each of these lists is nine times as long as the one before.
        let lists: String = (1..30)
            .map(|list| {
                format!(
                    "l{list}: &l{list} [{}*l{}]\n",
                    format!("*l{}, ", list - 1).repeat(8),
                    list - 1
                )
            })
            .collect();
        let bomb = format!("l0: &l0 [x]\n{lists}current-context: a\n");
        let deep = format!("current-context: a\nb:\n {}x\n", "- ".repeat(100_000));
        for text in [bomb, deep] {
            let (context, _) = kube_choice([text].into_iter());
            assert_eq!(context.as_deref(), Some("a"));
        }
    }
}
