//! `rsig mcp`: a server of the Model Context Protocol over standard input and output, for agents.
//!
//! A tool a file. Each reads its own parameters and fills its own answer, in which what went wrong is a part like any
//! other; the protocol's own errors are for what is no call of a tool at all. Nothing here keeps anything of a job.

mod answer;
mod exec;
mod list;
mod remove;
mod signal;
mod spawn;
mod tail;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    JsonObject, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
    Tool as Described, ToolAnnotations,
};
use rmcp::schemars::JsonSchema;
use rmcp::service::{RequestContext, ServerInitializeError};
use rmcp::transport::stdio;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use self::answer::{Answer, Problem};
use super::{Class, Limits, WorkerPool};
use crate::cmd::context::Context;

const INSTRUCTIONS: &str = "\
rsig runs jobs on other machines over SSH. A job outlives this server and the connection: keep its job_id, and any later \
session, other server or the command line (`rsig ps`) can follow, signal and await it.\n\
- A command that ends within a minute or so: ssh_exec, which gives its output and exit status at once.\n\
- Anything longer, or that you want to watch or stop: ssh_spawn, then ssh_tail with wait_ms to follow its output \
(pass each answer's cursor on), ssh_signal to stop it (TERM first, KILL only if that does not help), and \
ssh_remove_job when you are done with a finished job.\n\
- What runs, and where: ssh_list_jobs.\n\
A host is `local` (the machine of this server), an alias of its ssh configuration, or [user@]host[:port]. Each answer \
has `ok` and `error`; `error.message` says what to do next.";

/// Serves until the client closes standard input. Jobs run on.
pub fn serve(limits: Limits) -> Result<()> {
    super::check_state()?;
    let runtime = super::runtime()?;
    let served = runtime.block_on(async {
        let server = Server {
            limits: Arc::new(limits),
            workers: WorkerPool::default(),
        };
        match server.serve(stdio()).await {
            Ok(service) => service
                .waiting()
                .await
                .map(drop)
                .context("the server failed"),
            // A client that goes without a word is no failure.
            Err(ServerInitializeError::ConnectionClosed(_)) => Ok(()),
            Err(error) => {
                Err(error).context("the client does not speak the Model Context Protocol")
            }
        }
    });
    // What still waits for a host is not waited for: nobody listens any more, and jobs need nobody.
    runtime.shutdown_background();
    served
}

/// One of the tools.
trait Tool: 'static {
    /// What a client gives.
    type Params: DeserializeOwned + JsonSchema + Send + 'static;
    /// What it gets beside `ok` and `error`.
    type Answer: Serialize + JsonSchema + Default + Send + 'static;
    const NAME: &'static str;
    const TITLE: &'static str;
    const DESCRIPTION: &'static str;
    /// Whether it changes nothing.
    const READ_ONLY: bool = false;
    /// Whether it can end or remove something.
    const DESTRUCTIVE: bool = false;
    /// Whether doing it twice is as good as once.
    const IDEMPOTENT: bool = false;

    /// Whether it will wait for a job.
    fn class(_params: &Self::Params) -> Class {
        Class::Short
    }

    /// How long the client waits at most, and the answer that it gets then.
    fn late(_params: &Self::Params) -> Option<(Duration, Self::Answer)> {
        None
    }

    /// Does it. What is known by the time that it fails stays in the answer.
    fn call(
        call: &mut Call,
        params: Self::Params,
        answer: &mut Self::Answer,
    ) -> Result<(), Problem>;
}

/// What a tool works with.
struct Call {
    context: Context,
    gone: CancellationToken,
}

struct Server {
    limits: Arc<Limits>,
    workers: WorkerPool,
}

impl Server {
    /// Calls a tool in a thread of its own; ends early when the client has no use for the answer any more.
    async fn run<T: Tool>(
        &self,
        arguments: JsonObject,
        request: RequestContext<RoleServer>,
    ) -> CallToolResult {
        let result = |answer: Answer<T::Answer>| match serde_json::to_value(&answer) {
            Ok(value) => {
                let mut result = CallToolResult::structured(value);
                result.is_error = Some(answer.is_error());
                result
            }
            Err(error) => CallToolResult::error(vec![ContentBlock::text(format!(
                "the answer can't be told: {error}"
            ))]),
        };
        let params = match answer::params::<T>(arguments) {
            Ok(params) => params,
            Err(problem) => return result(Answer::failed(T::Answer::default(), problem)),
        };
        let late = T::late(&params);
        let gone = request.ct.child_token();
        let _guard = gone.clone().drop_guard();
        let work = async {
            let permit = self.workers.permit(T::class(&params)).await?;
            let limits = Arc::clone(&self.limits);
            let work = permit.work(move || {
                let mut answer = T::Answer::default();
                let called = limits.context().map_err(Problem::from).and_then(|context| {
                    let mut call = Call { context, gone };
                    T::call(&mut call, params, &mut answer)
                });
                match called {
                    Ok(()) => Answer::done(answer),
                    Err(problem) => Answer::failed(answer, problem),
                }
            });
            Some(
                work.await
                    .unwrap_or_else(|failure| Answer::failed(T::Answer::default(), failure.into())),
            )
        };
        let nobody = || {
            Answer::failed(
                T::Answer::default(),
                Problem::unexpected("the call was cancelled"),
            )
        };
        tokio::select! {
            answer = work => result(answer.unwrap_or_else(nobody)),
            answer = late_answer(late) => result(Answer::failed(
                answer,
                Problem::new("delivery_failed", "the host did not answer in time; ssh_list_jobs tells whether the job started"),
            )),
            () = request.ct.cancelled() => result(nobody()),
        }
    }
}

/// Waits until an answer is late, and gives what is told then.
async fn late_answer<T>(late: Option<(Duration, T)>) -> T {
    match late {
        Some((wait, answer)) => {
            tokio::time::sleep(wait).await;
            answer
        }
        None => std::future::pending().await,
    }
}

/// A tool as a client sees it.
fn described<T: Tool>() -> Result<Described, ErrorData> {
    let broken = |error: String| ErrorData::internal_error(error, None);
    let input = rmcp::handler::server::tool::schema_for_input::<T::Params>().map_err(broken)?;
    let output = rmcp::handler::server::tool::schema_for_output::<Answer<T::Answer>>();
    let annotations = ToolAnnotations::from_raw(
        Some(T::TITLE.to_owned()),
        Some(T::READ_ONLY),
        Some(T::DESTRUCTIVE),
        Some(T::IDEMPOTENT),
        // Whatever runs on a host may do anything.
        Some(true),
    );
    let tool = Described::new(T::NAME, T::DESCRIPTION, input).with_title(T::TITLE);
    Ok(tool
        .with_raw_output_schema(output)
        .with_annotations(annotations))
}

macro_rules! tools {
    ($($tool:ty),+ $(,)?) => {
        fn all() -> Result<Vec<Described>, ErrorData> {
            Ok(vec![$(described::<$tool>()?),+])
        }

        async fn call(
            server: &Server,
            name: &str,
            arguments: JsonObject,
            request: RequestContext<RoleServer>,
        ) -> Result<CallToolResult, ErrorData> {
            $(if name == <$tool>::NAME {
                return Ok(server.run::<$tool>(arguments, request).await);
            })+
            let names = [$(<$tool>::NAME),+].join(", ");
            Err(ErrorData::invalid_params(format!("there is no tool {name:?}: {names}"), None))
        }
    };
}

tools!(
    signal::Signal,
    spawn::Spawn,
    tail::Tail,
    list::List,
    remove::Remove,
    exec::Exec
);

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(ServerCapabilities::builder().enable_tools().build());
        info.server_info = Implementation::new("rsig", env!("CARGO_PKG_VERSION"));
        info.with_instructions(INSTRUCTIONS)
    }

    fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> impl Future<Output = Result<ListToolsResult, ErrorData>> + Send + '_ {
        std::future::ready(all().map(ListToolsResult::with_all_items))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        call(self, &request.name, arguments, context)
            .await
            .map(CallToolResponse::from)
    }
}

/// As many milliseconds as were asked for, and no more than a call may wait.
fn wait(milliseconds: u64) -> Duration {
    /// How long a call waits at most.
    const LONGEST: u64 = 30_000;
    Duration::from_millis(milliseconds.min(LONGEST))
}

/// A JSON object that stands for itself in a schema.
fn any_object(_: &mut rmcp::schemars::SchemaGenerator) -> rmcp::schemars::Schema {
    let mut schema = rmcp::schemars::Schema::default();
    schema.insert("type".to_owned(), Value::String("object".to_owned()));
    schema
}
