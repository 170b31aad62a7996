//! `rsig mcp`: a Model Context Protocol server over standard input and output, for agents.
//!
//! Each tool has its own file, with its parameters, its result and its implementation. A failed call returns a result
//! too; the protocol's own errors are only for requests that call no tool.

mod answer;
mod exec;
mod list;
mod remove;
mod send;
mod signal;
mod spawn;
mod tail;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, Implementation, JsonObject,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool as Described,
    ToolAnnotations,
};
use rmcp::schemars::JsonSchema;
use rmcp::service::{RequestContext, ServerInitializeError};
use rmcp::transport::stdio;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::answer::{Answer, Problem};
use super::Workers;
use super::start::NewJob;
use crate::cmd::context::Context;
use crate::error::{Failure, Kind};

/// Maximum wait of a call.
const WAIT_MAX: Duration = Duration::from_secs(30);

const INSTRUCTIONS: &str = "\
rsig runs jobs on other machines over SSH. A job outlives this server and the connection: keep its job_id, and any later \
session, other server or the command line (`rsig ps`) can follow it, signal it and wait for it.\n\
- A command that ends within a minute or so: ssh_exec, which gives its output and exit status at once.\n\
- Anything longer, or that you want to watch or stop: ssh_spawn, then ssh_tail with wait_ms to follow its output \
(pass each answer's cursor on), ssh_send_stdin to talk to it, ssh_signal to stop it (TERM first, KILL only if that does not help), and \
ssh_remove_job when you are done with a finished job.\n\
- What runs where: ssh_list_jobs.\n\
A host is `local` (the machine of this server), an alias of its ssh configuration, or [user@]host[:port]. Each answer \
has `ok` and `error`; `error.message` says what to do next.";

/// Serves until the client closes standard input. Jobs keep running.
pub fn serve(workers: Workers) -> Result<()> {
    super::check_state()?;
    let runtime = super::runtime()?;
    let served = runtime.block_on(async {
        let server = Server(Arc::new(workers));
        match server.serve(stdio()).await {
            Ok(service) => {
                let ended = service.waiting().await;
                ended.map(drop).context("the server failed")
            }
            // A client may disconnect before it initializes.
            Err(ServerInitializeError::ConnectionClosed(_)) => Ok(()),
            Err(error) => {
                Err(error).context("the client does not speak the Model Context Protocol")
            }
        }
    });
    // Does not wait for workers that still wait for a host: the client is gone, and jobs keep running.
    runtime.shutdown_background();
    served
}

/// A tool. The implementing type holds the parameters that the client passes.
trait Tool: DeserializeOwned + JsonSchema + Send + 'static {
    /// The fields of the result besides `ok` and `error`.
    type Answer: Serialize + JsonSchema + Default + Send + 'static;
    const NAME: &'static str;
    const TITLE: &'static str;
    const DESCRIPTION: &'static str;
    const READ_ONLY: bool = false;
    /// Whether the tool can end or remove something.
    const DESTRUCTIVE: bool = false;

    /// Whether the call waits for a job.
    fn is_long(&self) -> bool {
        false
    }

    /// The maximum duration of the call, and the result that the client gets after that.
    fn late(&self) -> (Duration, Self::Answer) {
        (Duration::MAX, Self::Answer::default())
    }

    /// Runs the call. Fields set in `answer` before a failure are returned to the client too.
    fn call(self, call: &mut ToolCall<'_>, answer: &mut Self::Answer) -> Result<(), Problem>;
}

/// The environment of a call.
struct ToolCall<'a> {
    context: &'a mut Context,
    /// Cancelled when the client no longer waits for the result.
    gone: &'a CancellationToken,
    /// The maximum duration of the call, which the call may change.
    limit: &'a watch::Sender<Duration>,
}

struct Server(Arc<Workers>);

impl Server {
    /// Calls a tool. Returns early if the call exceeds its maximum duration or the client cancels it.
    async fn run<T: Tool>(
        &self,
        arguments: JsonObject,
        cancelled: &CancellationToken,
    ) -> Answer<T::Answer> {
        let failed = |failure: Failure| Answer::new(T::Answer::default(), Err(failure.into()));
        let tool: T = match answer::params(arguments) {
            Ok(tool) => tool,
            Err(failure) => return failed(failure),
        };
        let begun = Instant::now();
        let (limit, late) = tool.late();
        let (limit, limits) = watch::channel(limit);
        let permits = self.0.permits(tool.is_long());
        let work = async {
            let permit = permits.acquire_owned().await.map_err(anyhow::Error::from)?;
            let work = move |context: &mut Context, gone: &CancellationToken| {
                let mut answer = T::Answer::default();
                let mut call = ToolCall {
                    context,
                    gone,
                    limit: &limit,
                };
                let result = tool.call(&mut call, &mut answer);
                Answer::new(answer, result)
            };
            Arc::clone(&self.0).run(permit, work).await
        };
        let too_late =
            "the host did not answer in time; ssh_list_jobs shows whether the job started";
        tokio::select! {
            answer = work => answer.unwrap_or_else(failed),
            () = expired(begun, limits) => {
                Answer::new(late, Err(Failure::new(Kind::Unreachable, too_late).into()))
            }
            () = cancelled.cancelled() => {
                failed(Failure::new(Kind::Failed, "the call was cancelled"))
            }
        }
    }
}

/// Returns once a call has exceeded its limit, which may change meanwhile.
async fn expired(begun: Instant, mut limits: watch::Receiver<Duration>) {
    loop {
        let left = limits.borrow_and_update().saturating_sub(begun.elapsed());
        // The sender is dropped when the call ends; the limit can't change after that.
        if tokio::time::timeout(left, limits.changed()).await.is_err() {
            return;
        }
        if limits.has_changed().is_err() {
            return tokio::time::sleep(left).await;
        }
    }
}

fn result<T: Serialize>(answer: &Answer<T>) -> Result<CallToolResult, ErrorData> {
    let value = serde_json::to_value(answer);
    let value = value.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
    let mut result = CallToolResult::structured(value);
    result.is_error = Some(answer.error.is_some());
    Ok(result)
}

/// The description of a tool for clients.
fn described<T: Tool>() -> Result<Described, ErrorData> {
    let input = rmcp::handler::server::tool::schema_for_input::<T>();
    let input = input.map_err(|error| ErrorData::internal_error(error, None))?;
    let output = rmcp::handler::server::tool::schema_for_output::<Answer<T::Answer>>();
    let annotations = ToolAnnotations::from_raw(
        Some(T::TITLE.to_owned()),
        Some(T::READ_ONLY),
        Some(T::DESTRUCTIVE),
        // Idempotent if it only reads.
        Some(T::READ_ONLY),
        // Open world: a command on a host may do anything.
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
            cancelled: &CancellationToken,
        ) -> Result<CallToolResult, ErrorData> {
            $(if name == <$tool>::NAME {
                return result(&server.run::<$tool>(arguments, cancelled).await);
            })+
            let names = [$(<$tool>::NAME),+].join(", ");
            let message = format!("no tool {name:?}; the tools are {names}");
            Err(ErrorData::invalid_params(message, None))
        }
    };
}

tools!(
    signal::SendSignal,
    NewJob,
    send::SendStdin,
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
        let result = call(self, &request.name, arguments, &context.ct).await;
        result.map(CallToolResponse::from)
    }
}

fn wait(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds).min(WAIT_MAX)
}
