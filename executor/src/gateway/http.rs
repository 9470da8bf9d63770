//! The HTTP protocol: routes, and what goes over them.
//!
//! Paths are those of the Open Inference Protocol and of Triton's extensions (repository, configuration, statistics).
//! An error is a status and `{"error": "…"}`. What this server does not do is 501, so that no client takes it for a
//! missing model.

use super::body;
use super::core::{Gateway, Protocol, index_state};
use super::failure::{Code, Failure, RETRY_AFTER_MS};
use super::message::{Answer, Call, deadline, handed_on, timeout_us};
use super::path::{LoadWish, Model};
use super::server_metadata::{EXTENSIONS, NAME, VERSION};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use schemas::headers;
use schemas::status::TensorSignature;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const DEADLINE: HeaderName = HeaderName::from_static(headers::DEADLINE_MS);
const CORRELATION: HeaderName = HeaderName::from_static(headers::CORRELATION_ID);

type Shared = State<Arc<Gateway>>;

/// The routes.
pub(crate) fn router(gateway: Arc<Gateway>) -> Router {
    let open = Router::new()
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready));
    let closed = Router::new()
        .route("/v2", get(metadata))
        .route("/v2/", get(metadata))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/models/{model}", get(model_metadata))
        .route("/v2/models/{model}/versions/{version}", get(model_metadata))
        .route("/v2/models/{model}/config", get(model_config))
        .route("/v2/models/{model}/versions/{version}/config", get(model_config))
        .route("/v2/models/{model}/stats", get(model_statistics))
        .route("/v2/models/{model}/versions/{version}/stats", get(model_statistics))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
        .route("/v2/systemsharedmemory/{*rest}", any(unserved))
        .route("/v2/cudasharedmemory/{*rest}", any(unserved))
        .route("/v2/trace/{*rest}", any(unserved))
        .route("/v2/logging", any(unserved))
        .route("/v2/models/{model}/trace/{*rest}", any(unserved))
        .layer(from_fn_with_state(gateway.clone(), authorised));
    open.merge(closed)
        .fallback(|request: Request| async move {
            Failure::new(Code::NotFound, format!("no such path: {}", request.uri().path())).into_response()
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!("{} is not for {}", request.method(), request.uri().path());
            Failure::new(Code::MethodNotAllowed, message).into_response()
        })
        .with_state(gateway)
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(json!({"error": self.message}))).into_response();
        let headers = response.headers_mut();
        if self.code.may_retry() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_MS.div_ceil(1000)));
        }
        if self.code == Code::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

async fn authorised(State(gateway): Shared, request: Request, next: Next) -> Response {
    match gateway.authorise(request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes)) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

async fn unserved(request: Request) -> Failure {
    Failure::new(Code::Unimplemented, format!("{}: this extension is not served", request.uri().path()))
}

async fn live() -> Response {
    axum::Json(json!({"live": true})).into_response()
}

async fn ready(State(gateway): Shared) -> Response {
    said_ready(json!({"ready": true}), json!({"ready": false}), gateway.not_ready())
}

/// 200, or 503 with both what the protocol says and why.
fn said_ready(yes: Value, mut no: Value, why_not: Option<String>) -> Response {
    let Some(why) = why_not else { return axum::Json(yes).into_response() };
    no["error"] = why.into();
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(no)).into_response()
}

/// Model and version of a path.
#[derive(Debug, Deserialize)]
struct Named {
    model: String,
    version: Option<String>,
}

async fn model_ready(State(gateway): Shared, Path(named): Path<Named>) -> Result<Response, Failure> {
    let model = gateway.model(&named.model, named.version.as_deref())?;
    let why = gateway.not_ready().or_else(|| {
        let (state, reason) = index_state(&model);
        (!model.is_ready()).then(|| format!("model '{}' is {state} {reason}", named.model).trim_end().to_owned())
    });
    Ok(said_ready(json!({"name": named.model, "ready": true}), json!({"name": named.model, "ready": false}), why))
}

async fn metadata() -> Response {
    axum::Json(json!({"name": NAME, "version": VERSION, "extensions": EXTENSIONS})).into_response()
}

fn tensors(all: &[TensorSignature]) -> Vec<Value> {
    all.iter().map(|t| json!({"name": t.name, "datatype": t.datatype, "shape": t.shape})).collect()
}

async fn model_metadata(State(gateway): Shared, Path(named): Path<Named>) -> Result<Response, Failure> {
    let model = gateway.described(&named.model, named.version.as_deref())?;
    let signature = model.signature.unwrap_or_else(empty_signature);
    let body = json!({
        "name": model.name,
        "versions": gateway.versions(&named.model),
        "platform": platform(&model.backend),
        "inputs": tensors(&signature.inputs),
        "outputs": tensors(&signature.outputs),
    });
    Ok(axum::Json(body).into_response())
}

fn empty_signature() -> schemas::status::ModelSignature {
    schemas::status::ModelSignature { max_rows: 0, inputs: Vec::new(), outputs: Vec::new() }
}

/// The protocol's name of a platform: framework and format.
pub(crate) fn platform(backend: &str) -> String {
    format!("{backend}_onnx")
}

async fn model_config(State(gateway): Shared, Path(named): Path<Named>) -> Result<Response, Failure> {
    let model = gateway.described(&named.model, named.version.as_deref())?;
    let signature = model.signature.unwrap_or_else(empty_signature);
    let batched = signature.max_rows > 0;
    let dims = |t: &TensorSignature| t.shape[usize::from(batched).min(t.shape.len())..].to_vec();
    let configured = |all: &[TensorSignature]| -> Vec<Value> {
        let one =
            |t: &TensorSignature| json!({"name": t.name, "data_type": format!("TYPE_{}", t.datatype), "dims": dims(t)});
        all.iter().map(one).collect()
    };
    let body = json!({
        "name": model.name,
        "platform": platform(&model.backend),
        "backend": model.backend,
        "max_batch_size": signature.max_rows,
        "input": configured(&signature.inputs),
        "output": configured(&signature.outputs),
    });
    Ok(axum::Json(body).into_response())
}

fn statistics(gateway: &Gateway, models: &[Model]) -> Response {
    let one = |model: &Model| {
        let tally = gateway.tally(model);
        json!({
            "name": model.name,
            "version": model.version,
            "last_inference": tally.last_ms,
            "inference_count": tally.success,
            "inference_stats": {
                "success": {"count": tally.success, "ns": tally.success_ns},
                "fail": {"count": tally.fail, "ns": tally.fail_ns},
            },
        })
    };
    axum::Json(json!({"model_stats": models.iter().map(one).collect::<Vec<_>>()})).into_response()
}

async fn all_statistics(State(gateway): Shared) -> Response {
    statistics(&gateway, &gateway.models())
}

async fn model_statistics(State(gateway): Shared, Path(named): Path<Named>) -> Result<Response, Failure> {
    let model = gateway.model(&named.model, named.version.as_deref())?;
    Ok(statistics(&gateway, &[model]))
}

/// Body of a request of the repository extension; what is not known in it is ignored.
#[derive(Debug, Default, Deserialize)]
struct Control {
    #[serde(default)]
    ready: bool,
    #[serde(default)]
    parameters: serde_json::Map<String, Value>,
}

async fn control(body: Body) -> Result<Control, Failure> {
    let bytes = body::read_small(body).await?;
    if bytes.trim_ascii().is_empty() {
        return Ok(Control::default());
    }
    serde_json::from_slice(&bytes).map_err(|e| Failure::new(Code::BadRequest, format!("invalid-json: request: {e}")))
}

async fn index(State(gateway): Shared, body: Body) -> Result<Response, Failure> {
    let only_ready = control(body).await?.ready;
    let models = gateway.models();
    let listed = models.iter().filter(|m| !only_ready || m.is_ready()).map(|model| {
        let (state, reason) = index_state(model);
        json!({"name": model.name, "version": model.version, "state": state, "reason": reason})
    });
    Ok(axum::Json(listed.collect::<Vec<_>>()).into_response())
}

async fn load(State(gateway): Shared, Path(named): Path<Named>, body: Body) -> Result<Response, Failure> {
    let parameters = control(body).await?.parameters;
    let number = |name: &str| match parameters.get(name) {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0) {
            Some(n) => Ok(Some(n)),
            None => {
                let message = format!("bad-field: parameters.{name}: `{value}` is not a number above 0");
                Err(Failure::new(Code::BadRequest, message))
            }
        },
    };
    let wish = LoadWish { workers: number("workers")?, max_batch: number("max_batch")? };
    gateway.load(&named.model, wish).await?;
    Ok(axum::Json(json!({"name": named.model, "load": true})).into_response())
}

async fn unload(State(gateway): Shared, Path(named): Path<Named>) -> Result<Response, Failure> {
    gateway.unload(&named.model).await?;
    Ok(axum::Json(json!({"name": named.model, "unload": true})).into_response())
}

async fn infer(State(gateway): Shared, Path(named): Path<Named>, request: Request) -> Result<Response, Failure> {
    let mut admission = gateway.admit(Protocol::Http)?;
    let (parts, body) = request.into_parts();
    let correlation = parts.headers.get(CORRELATION).cloned();
    let read = read_call(named, &parts.headers, body, &mut admission).await;
    let call = match read {
        Ok(call) => call,
        Err(failure) => {
            let outcome: Result<(), Failure> = Err(failure.clone());
            admission.ended(&outcome);
            return Err(failure);
        }
    };
    let answer = gateway.infer(&mut admission, call).await?;
    let mut response = written(answer);
    if let Some(correlation) = correlation {
        response.headers_mut().insert(CORRELATION, correlation);
    }
    Ok(response)
}

async fn read_call(
    named: Named,
    headers: &HeaderMap,
    body: Body,
    admission: &mut super::core::Admission,
) -> Result<Call, Failure> {
    let declared = text(headers, &header::CONTENT_LENGTH)?.and_then(|length| length.parse().ok());
    let json_length = match text(headers, &JSON_LENGTH)? {
        None => None,
        Some(length) => Some(length.parse::<usize>().map_err(|_| {
            let message = format!("bad-field: header {JSON_LENGTH}: `{length}` is not a length");
            Failure::new(Code::BadRequest, message)
        })?),
    };
    let mut body = body::read(body, declared, admission).await?;
    if let Some(encoding) = text(headers, &header::CONTENT_ENCODING)? {
        body = body::decoded(body, encoding, admission).await?;
    }
    let json = &body[..json_length.unwrap_or(body.len()).min(body.len())];
    let deadline_ms = deadline(text(headers, &DEADLINE)?, timeout_us(json)?)?;
    let handed_on = handed_on(|name| headers.get(name).map(HeaderValue::as_bytes));
    Ok(Call { service: named.model, version: named.version, body, json_length, deadline_ms, handed_on })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Failure> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    value.to_str().map(Some).map_err(|_| Failure::new(Code::BadRequest, format!("bad-field: header {name}: not text")))
}

fn written(answer: Answer) -> Response {
    let kind = if answer.json_length.is_some() { "application/octet-stream" } else { "application/json" };
    let mut response = Response::new(Body::from(answer.body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = answer.json_length {
        response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    }
    response
}
