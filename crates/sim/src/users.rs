//! What users and operators ask of servers: through the layer under the API's handlers.
//!
//! **Owns:** the requests, and what became of them.
//!
//! **Does not know:** what a request means: the server's own code does.
//!
//! **Start here:** [`World::ask`].

use std::sync::{Arc, PoisonError};

use api::drain::HostActionBody;
use api::kinds::{Datastore, Host as ApiHost, Image, Migration, Network, Template, Vm};
use api::{Create, Problem};
use controller::cache::Cache;
use controller::commit::{Writer, commit};
use futures_util::FutureExt;
use model::audit::Actor;
use model::host::HostSpec;
use model::token::Role;
use model::{HostId, Kind, key, samples};
use planner::Plan;
use serde_json::{Value, json};
use server::auth::User;
use server::hosts::{Joining, Wish};
use server::kinds::Served;
use server::routes::{decide_change, decide_create, decide_delete, decide_host_action, decide_vm_action};
use server::service::{self, Answer, Context};
use server::shared::Cloud;
use uuid::Uuid;

use crate::bugs::Bug;
use crate::script::{Rule, Step};
use crate::templates::TEMPLATE;
use crate::world::{Said, World};

/// What became of a request.
pub(crate) struct Answered {
    pub(crate) step: usize,
    pub(crate) answer: Result<Answer, Problem>,
}

fn person() -> User {
    User {
        name: "ann".to_owned(),
        role: Role::Operator,
        digest: String::new(),
        from: None,
        request: None,
    }
}

fn word(rule: Rule) -> &'static str {
    match rule {
        Rule::None => "none",
        Rule::Together => "together",
        Rule::Apart => "apart",
    }
}

/// What is asked for by a rule: it is about the others that carry its word.
fn placement(rule: Rule) -> Value {
    let others = json!([{ "to": { "vms": { "rule": word(rule) } } }]);
    match rule {
        Rule::None => json!({}),
        Rule::Together => json!({ "affinity": others }),
        Rule::Apart => json!({ "anti_affinity": others }),
    }
}

pub(crate) fn vm_name(vm: usize) -> String {
    format!("vm{vm}")
}

pub(crate) fn named(name: Option<String>, spec: Value) -> Create<Value> {
    Create {
        name,
        labels: Default::default(),
        spec,
    }
}

/// What is asked for, as a function of what is there.
pub(crate) type Decide = Box<dyn Fn(&Context<'_>, &mut Plan) -> Result<Uuid, Problem> + Send + Sync>;

impl World {
    /// A wish of the script reaches a server.
    pub(crate) fn ask(&mut self, n: usize, wish: &Step) {
        match wish {
            Step::Create {
                vm,
                memory_mib,
                rule,
                has_nic,
            } => {
                let nics = if *has_nic {
                    json!([{ "network": "net" }])
                } else {
                    json!([])
                };
                let spec = json!({
                    "image": "tiny", "memory_mib": memory_mib, "vcpus": 1, "nics": nics,
                    "placement": placement(*rule),
                });
                let mut request = named(Some(vm_name(*vm)), spec);
                request.labels.insert("rule".to_owned(), word(*rule).to_owned());
                self.request_new::<Vm>(n, request);
            }
            Step::Clone { vm, of } => {
                let request = named(Some(vm_name(*vm)), json!({ "clone_of": vm_name(*of) }));
                self.request_new::<Vm>(n, request);
            }
            Step::Act { vm, action, force } => {
                let (name, action, force) = (vm_name(*vm), *action, *force);
                self.request::<Vm>(
                    n,
                    200,
                    Box::new(move |context, plan| {
                        decide_vm_action(context, plan, &name, action, force, None)
                    }),
                );
            }
            Step::Delete { vm } => {
                let name = vm_name(*vm);
                self.checks.deleted.insert(name.clone());
                self.request_end::<Vm>(n, name);
            }
            Step::Migrate { vm } => {
                let request = named(None, json!({ "vm": vm_name(*vm) }));
                self.request_new::<Migration>(n, request);
            }
            Step::Of(wish) => self.ask_of_templates(n, wish),
            Step::Cancel { vm } => self.cancel(n, &vm_name(*vm)),
            Step::Operate { host, action } => {
                if let Some(host) = self.hosts.get(*host).map(crate::host::Host::name) {
                    self.operate(n, host, action);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn operate(&mut self, n: usize, host: String, action: &'static str) {
        self.request::<ApiHost>(
            n,
            200,
            Box::new(move |context, plan| {
                let asked = HostActionBody { parallel: None };
                decide_host_action(context, plan, &host, action, &asked, None)
            }),
        );
    }

    fn cancel(&mut self, n: usize, vm: &str) {
        let view = &self.checks.view;
        let id = view.find(Kind::Vm, Some(server::auth::PROJECT), vm);
        let migration = id.and_then(|id| view.active_migrations(id.into()).next());
        let name = migration.and_then(|(_, parts)| Some(parts.object.as_ref()?.value.meta.name.clone()));
        let Some(name) = name else { return };
        self.request::<Migration>(
            n,
            200,
            Box::new(move |context, plan| {
                decide_change::<Migration>(context, plan, &name, None, |mut present| {
                    present["spec"]["cancel"] = true.into();
                    serde_json::from_value(present)
                        .map_err(|error| Problem::invalid("test", error.to_string()))
                })
            }),
        );
    }

    /// Asks for an object that is not there yet.
    pub(crate) fn request_new<R: Served + 'static>(&mut self, n: usize, request: Create<Value>) {
        let decide =
            move |context: &Context<'_>, plan: &mut Plan| decide_create::<R>(context, plan, request.clone());
        self.request::<R>(n, 201, Box::new(decide));
    }

    /// Asks for the end of one.
    pub(crate) fn request_end<R: Served + 'static>(&mut self, n: usize, name: String) {
        let decide =
            move |context: &Context<'_>, plan: &mut Plan| decide_delete::<R>(context, plan, &name, None);
        self.request::<R>(n, 200, Box::new(decide));
    }

    pub(crate) fn request<R: Served + 'static>(&mut self, n: usize, status: u16, decide: Decide) {
        let server = n % self.servers.len();
        let Some(cloud) = self.servers[server].cloud.clone() else {
            return;
        };
        self.have_done(server, async move {
            let answer = service::write::<R>(&cloud, &person(), status, None, decide).await;
            Said::Answered(Answered { step: n, answer })
        });
    }

    /// Whoever is answered that it is done must find it so.
    pub(crate) fn note_answer(&mut self, answered: Answered) {
        self.look_over();
        let Ok(answer) = answered.answer else { return };
        let revision = answer.body["revision"].as_u64().unwrap_or_default();
        let at = self.checks.view.revision;
        self.checks.must(revision <= at, || {
            format!(
                "step {} was answered with revision {revision}, and the store is at {at}",
                answered.step
            )
        });
        let step = self.the_step(answered.step);
        let is_made = step.is_some_and(|step| Self::is_made_for_good(&step));
        if let Some(name) = answer.body["name"].as_str().filter(|_| is_made) {
            self.checks.created.insert(name.to_owned());
        }
    }

    /// What is there before anything happens: hosts that have joined, an image and a datastore.
    pub(crate) fn furnish(&mut self) -> Result<(), String> {
        let env = self.servers[0].env.clone();
        let opened = Cache::open(self.memory.clone(), env.clone()).now_or_never();
        let Some(Ok(opened)) = opened else {
            return Err("the store could not be read".to_owned());
        };
        let cloud = Arc::new(Cloud::new(self.memory.clone(), opened.cache, env));
        self.tasks.spawn(usize::MAX, opened.following);
        let members = self.hosts.iter().filter(|host| host.is_member);
        let hosts: Vec<(HostId, String)> = members.map(|host| (host.id, host.name())).collect();
        let done = Arc::new(std::sync::Mutex::new(None));
        let told = done.clone();
        self.tasks.spawn(usize::MAX, async move {
            let result = furnish(&cloud, hosts).await;
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        });
        self.tasks.run();
        self.tasks.end(usize::MAX);
        let result = done.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.look_over();
        result.unwrap_or_else(|| Err("the world could not be furnished".to_owned()))
    }

    /// A host asks a server to take it in, as the server's own code does for one that shows a token.
    pub(crate) fn ask_to_join(&mut self, n: usize) {
        let server = n % self.servers.len();
        let Some(cloud) = self.servers[server].cloud.clone() else {
            return;
        };
        let name = self.hosts[n].name();
        self.tasks.spawn(server, async move {
            let wish = Wish {
                name: &name,
                machine: None,
                used_by: None,
            };
            let joining = Joining::under(&cloud.cache.view(), wish, || cloud.env.next_id());
            let Ok(joining) = joining else { return };
            let actor = Actor {
                name: format!("agent:{name}"),
                from: None,
                request: None,
            };
            let plan = joining.plan(cloud.env.now(), "0".repeat(64));
            // It sees in the store whether it was taken in.
            let _ = commit(cloud.writer(&actor), plan).await;
        });
    }

    /// A person says that a host is off, which it is not.
    pub(crate) fn fence_wrongly(&mut self) {
        if self.bug != Some(Bug::FenceIgnored) {
            return;
        }
        let silent = self
            .checks
            .view
            .hosts
            .values()
            .find(|host| host.is_silent() && !host.is_dead());
        if let Some(name) = silent.map(|host| host.name().to_owned()) {
            // It is no step of the script.
            self.operate(usize::MAX, name, "confirm-dead");
        }
    }
}

async fn furnish(cloud: &Cloud, hosts: Vec<(HostId, String)>) -> Result<(), String> {
    let user = person();
    let make = |kind: &'static str| move |problem: Problem| format!("no {kind}: {}", problem.detail);
    let datastore = named(
        Some("default".to_owned()),
        json!({ "path": "/datastore", "coherent": true }),
    );
    let decide =
        |context: &Context<'_>, plan: &mut Plan| decide_create::<Datastore>(context, plan, datastore.clone());
    service::write::<Datastore>(cloud, &user, 201, None, decide)
        .await
        .map_err(make("datastore"))?;
    let network = named(Some("net".to_owned()), json!({ "cidr": "10.1.0.0/24" }));
    let decide =
        |context: &Context<'_>, plan: &mut Plan| decide_create::<Network>(context, plan, network.clone());
    service::write::<Network>(cloud, &user, 201, None, decide)
        .await
        .map_err(make("network"))?;
    let image = named(Some("tiny".to_owned()), json!({}));
    let decide =
        |context: &Context<'_>, plan: &mut Plan| decide_create::<Image>(context, plan, image.clone());
    let answer = service::write::<Image>(cloud, &user, 201, None, decide)
        .await
        .map_err(make("image"))?;
    let id: Uuid = serde_json::from_value(answer.body["id"].clone()).map_err(|error| error.to_string())?;
    let template = json!({ "image": "tiny", "memory_mib": 256, "vcpus": 1, "networks": [] });
    let template = named(Some(TEMPLATE.to_owned()), template);
    let decide =
        |context: &Context<'_>, plan: &mut Plan| decide_create::<Template>(context, plan, template.clone());
    service::write::<Template>(cloud, &user, 201, None, decide)
        .await
        .map_err(make("template"))?;
    let mut plan = Plan::new("furnish");
    plan.create(key::image_status(id.into()), &samples::image_status());
    for (id, name) in hosts {
        let host = samples::object(Kind::Host, id.0, &name, cloud.env.now(), HostSpec::default());
        plan.create(key::object(Kind::Host, id.0), &host);
        plan.create(key::name_index(Kind::Host, None, &name), &id.0);
    }
    let actor = Actor {
        name: "operator".to_owned(),
        from: None,
        request: None,
    };
    let writer: Writer<'_> = cloud.writer(&actor);
    commit(writer, plan)
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}
