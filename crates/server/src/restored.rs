//! How the store is, and how a restored one goes on.

use std::time::Duration;

use api::Problem;
use api::store::{RestoredStatus, ResumeBody, StoreStatus, UnknownRun};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use controller::commit::commit;
use model::restored::{PutBack, Restored};
use planner::restored::{Unsettled, Way, plan, unsettled};
use planner::view::At;

use crate::answer::{Body, Refused, commit_problem, store_problem};
use crate::auth::User;
use crate::routes::{App, optional};

/// How the store is.
pub async fn status(State(app): State<App>, _: User) -> Result<Response, Refused> {
    Ok(axum::Json(status_of(&app).await?).into_response())
}

/// Lets a restored store go on. Repeating it is safe, and says how far it is.
pub async fn resume(State(app): State<App>, user: User, Body(body): Body) -> Result<Response, Refused> {
    user.must_be_admin("let a restored store go on")?;
    let asked: ResumeBody = optional(&body)?;
    let way = if asked.end_unknown {
        Way::EndUnknown
    } else {
        Way::Settled
    };
    let restored = app.cache.view().restored.clone();
    if let Some(restored) = restored {
        step(&app, &user, &restored, way).await?;
    }
    Ok(axum::Json(status_of(&app).await?).into_response())
}

async fn step(app: &App, user: &User, restored: &At<Restored>, way: Way) -> Result<(), Problem> {
    let in_the_way = in_the_way(app);
    let Some(plan) = plan(restored, &in_the_way, way) else {
        return refuse(&in_the_way, &restored.value);
    };
    let actor = user.actor();
    let revision = commit(app.writer(&actor), plan).await.map_err(commit_problem)?;
    app.cache.reach(revision, Duration::from_secs(5)).await;
    Ok(())
}

fn in_the_way(app: &App) -> Unsettled {
    let heard = app.heard.open();
    unsettled(&app.cache.view(), |host| heard.get(&host).map(Vec::as_slice))
}

/// What a person has to do; nothing while hosts are ending what is not known.
fn refuse(in_the_way: &Unsettled, restored: &Restored) -> Result<(), Problem> {
    if let Some(PutBack {
        host,
        obeyed_revision,
    }) = &restored.put_back
    {
        let detail = format!(
            "this database is an old one: it is at revision {}, and host {host} has obeyed revision {obeyed_revision}. If \
             another server runs on a later copy of it, stop this one. If not, stop it, move `store/store.db` out of its data \
             directory, and put it back by `sterna store restore`",
            restored.from_revision
        );
        return Err(Problem::conflict("store-put-back", detail));
    }
    if !in_the_way.silent.is_empty() {
        let hosts = in_the_way.silent.join(", ");
        let detail = format!(
            "what runs on {hosts} is not known yet, and a VM could be started a second time: wait for them, or say with \
             `sterna host confirm-dead` that they are off"
        );
        return Err(Problem::conflict("hosts-silent", detail));
    }
    if restored.ends_unknown {
        return Ok(());
    }
    let each = in_the_way.unknown.iter();
    let each: Vec<_> = each
        .map(|it| format!("incarnation {} of VM {} on {}", it.incarnation, it.vm, it.host))
        .collect();
    let detail = format!(
        "the backup does not know what was started after it: {}. `sterna store resume --end-unknown` ends it and keeps its \
         disks; or restore a newer backup",
        each.join(", ")
    );
    Err(Problem::conflict("runs-unknown", detail))
}

async fn status_of(app: &App) -> Result<StoreStatus, Problem> {
    let status = app.store.status().await.map_err(|error| store_problem(&error))?;
    let restored = app.cache.view().restored.clone();
    Ok(StoreStatus {
        backend: status.backend.to_owned(),
        revision: status.revision,
        compacted: status.compacted,
        keys: status.keys as u64,
        size_bytes: status.size_bytes,
        free_bytes: status.free_bytes,
        restored: restored.map(|restored| restored_status(app, &restored.value)),
    })
}

fn restored_status(app: &App, restored: &Restored) -> RestoredStatus {
    let in_the_way = in_the_way(app);
    let view = app.cache.view();
    let named = |it: planner::restored::Unknown| UnknownRun {
        name: view.meta(model::Kind::Vm, it.vm.0).map(|meta| meta.name.clone()),
        host: it.host,
        vm: it.vm,
        incarnation: it.incarnation,
    };
    RestoredStatus {
        at: restored.at,
        from_revision: restored.from_revision,
        ends_unknown: restored.ends_unknown,
        silent_hosts: in_the_way.silent,
        unknown: in_the_way.unknown.into_iter().map(named).collect(),
    }
}
