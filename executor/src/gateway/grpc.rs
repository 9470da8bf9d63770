//! The gRPC protocol: `inference.GRPCInferenceService`.
//!
//! [`Outer`] is what a connection talks to: it checks the token and the limits, reads the body of a call within them,
//! and hands it to the generated server with its [`Admission`]. Streams are read by the generated server, and each of
//! their messages is admitted by itself.

use super::body;
use super::core::{Admission, Gateway, Protocol, index_state};
use super::failure::{Code, Failure, RETRY_AFTER_MS};
use super::grpc_codec::{from_answer, to_call};
use super::http::platform;
use super::message::{deadline, handed_on};
use super::path::{LoadWish, Model};
use super::proto::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use super::proto::model_metadata_response::TensorMetadata;
use super::proto::repository_index_response::ModelIndex;
use super::proto::*;
use super::server_metadata::{EXTENSIONS, NAME, VERSION};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http_body_util::Full;
use hyper::body::Incoming;
use schemas::headers;
use schemas::status::{ModelSignature, TensorSignature};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::codegen::http;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

/// Messages of one stream that are worked on at once.
const STREAM_WIDTH: usize = 16;

/// Path of the streaming call.
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// Path of the call for inference.
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
/// Calls that need no token, as health over HTTP.
const OPEN: [&str; 3] = [
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
];

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut status = Status::new(failure.code.grpc(), failure.message);
        if failure.code.may_retry() {
            // What gRPC clients with a retry policy heed.
            status.metadata_mut().insert("grpc-retry-pushback-ms", RETRY_AFTER_MS.into());
        }
        status
    }
}

/// A call's place, handed from the connection to the handler.
#[derive(Clone)]
struct Place(Arc<Mutex<Option<Admission>>>);

/// What a connection talks to.
#[derive(Clone)]
pub(crate) struct Outer {
    gateway: Arc<Gateway>,
    inner: GrpcInferenceServiceServer<Handler>,
}

impl Outer {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Self {
        let handler = Handler { gateway: gateway.clone() };
        let inner = GrpcInferenceServiceServer::new(handler)
            .max_decoding_message_size(gateway.config.max_body)
            .max_encoding_message_size(usize::MAX);
        Outer { gateway, inner }
    }

    /// One call.
    pub(crate) async fn serve(mut self, request: http::Request<Incoming>) -> http::Response<tonic::body::Body> {
        let path = request.uri().path();
        if !OPEN.contains(&path) {
            let token = request.headers().get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
            if let Err(failure) = self.gateway.authorise(token) {
                return Status::from(failure).into_http();
            }
        }
        if path == STREAM {
            return answered(self.inner.call(request).await);
        }
        match self.whole(request).await {
            Ok(request) => answered(self.inner.call(request).await),
            Err(failure) => Status::from(failure).into_http(),
        }
    }

    /// The request with its body read, and with its place if it is one for inference.
    async fn whole(&self, request: http::Request<Incoming>) -> Result<http::Request<Full<Bytes>>, Failure> {
        let (mut parts, body) = request.into_parts();
        if parts.uri.path() != INFER {
            return Ok(http::Request::from_parts(parts, Full::new(body::read_small(body).await?)));
        }
        let mut admission = self.gateway.admit(Protocol::Grpc)?;
        let patience = parts.headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
        if let Some(patience) = patience {
            admission.lower_deadline(patience);
        }
        let declared = parts.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let body = body::read(body, declared, &mut admission).await.inspect_err(|failure| {
            admission.ended::<()>(&Err(failure.clone()));
        })?;
        parts.extensions.insert(Place(Arc::new(Mutex::new(Some(admission)))));
        Ok(http::Request::from_parts(parts, Full::new(body)))
    }
}

fn answered(
    outcome: Result<http::Response<tonic::body::Body>, std::convert::Infallible>,
) -> http::Response<tonic::body::Body> {
    outcome.unwrap_or_else(|never| match never {})
}

/// The client's time-out: a number of at most eight digits and a unit.
/// Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, `Timeout`.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The calls.
struct Handler {
    gateway: Arc<Gateway>,
}

/// An empty string is how a message says "none".
fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn header<'a>(metadata: &'a tonic::metadata::MetadataMap, name: &str) -> Result<Option<&'a str>, Failure> {
    let Some(value) = metadata.get(name) else { return Ok(None) };
    value
        .to_str()
        .map(Some)
        .map_err(|_| Failure::new(Code::BadRequest, format!("bad-field: metadata {name}: not text")))
}

/// One inference with the metadata of its call.
async fn infer(
    gateway: &Gateway,
    admission: &mut Admission,
    metadata: &tonic::metadata::MetadataMap,
    request: ModelInferRequest,
) -> Result<ModelInferResponse, Failure> {
    let prepared = to_call(request).and_then(|(mut call, timeout_us)| {
        call.deadline_ms = deadline(header(metadata, headers::DEADLINE_MS)?, timeout_us)?;
        call.handed_on = handed_on(|name| metadata.get(name).map(tonic::metadata::MetadataValue::as_encoded_bytes));
        Ok(call)
    });
    match prepared {
        Ok(call) => from_answer(&gateway.infer(admission, call).await?),
        Err(failure) => {
            admission.ended::<()>(&Err(failure.clone()));
            Err(failure)
        }
    }
}

fn tensors(all: &[TensorSignature]) -> Vec<TensorMetadata> {
    let one = |t: &TensorSignature| TensorMetadata {
        name: t.name.clone(),
        datatype: t.datatype.clone(),
        shape: t.shape.clone(),
    };
    all.iter().map(one).collect()
}

fn config(model: Model, signature: &ModelSignature) -> ModelConfig {
    let batched = signature.max_rows > 0;
    let dims = |t: &TensorSignature| t.shape[usize::from(batched).min(t.shape.len())..].to_vec();
    let data_type = |t: &TensorSignature| match t.datatype.as_str() {
        "FP32" => DataType::TypeFp32 as i32,
        _ => DataType::TypeInvalid as i32,
    };
    let input = |t: &TensorSignature| ModelInput { name: t.name.clone(), data_type: data_type(t), dims: dims(t) };
    let output = |t: &TensorSignature| ModelOutput { name: t.name.clone(), data_type: data_type(t), dims: dims(t) };
    ModelConfig {
        name: model.name,
        platform: platform(&model.backend),
        backend: model.backend,
        max_batch_size: i32::try_from(signature.max_rows).unwrap_or(i32::MAX),
        input: signature.inputs.iter().map(input).collect(),
        output: signature.outputs.iter().map(output).collect(),
    }
}

fn statistics(gateway: &Gateway, model: Model) -> ModelStatistics {
    let tally = gateway.tally(&model);
    ModelStatistics {
        name: model.name,
        version: model.version,
        last_inference: tally.last_ms,
        inference_count: tally.success,
        inference_stats: Some(InferStatistics {
            success: Some(StatisticDuration { count: tally.success, ns: tally.success_ns }),
            fail: Some(StatisticDuration { count: tally.fail, ns: tally.fail_ns }),
        }),
    }
}

/// KServe has the model's name where Triton has the repository's.
fn named(repository_name: String, model_name: String) -> String {
    if model_name.is_empty() { repository_name } else { model_name }
}

fn wish(parameters: &std::collections::HashMap<String, ModelRepositoryParameter>) -> Result<LoadWish, Failure> {
    use model_repository_parameter::ParameterChoice;
    let number = |name: &str| {
        let Some(parameter) = parameters.get(name) else { return Ok(None) };
        match parameter.parameter_choice {
            Some(ParameterChoice::Int64Param(n)) if (1..=i64::from(u32::MAX)).contains(&n) => Ok(u32::try_from(n).ok()),
            _ => {
                let message = format!("bad-field: parameters.{name}: not a number above 0");
                Err(Failure::new(Code::BadRequest, message))
            }
        }
    };
    Ok(LoadWish { workers: number("workers")?, max_batch: number("max_batch")? })
}

#[tonic::async_trait]
impl GrpcInferenceService for Handler {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.gateway.not_ready().is_none() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        let model = self.gateway.model(&request.name, some(&request.version))?;
        let ready = model.is_ready() && self.gateway.not_ready().is_none();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: NAME.to_owned(),
            version: VERSION.to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let model = self.gateway.described(&request.name, some(&request.version))?;
        let (inputs, outputs) =
            model.signature.map_or_else(Default::default, |s| (tensors(&s.inputs), tensors(&s.outputs)));
        Ok(Response::new(ModelMetadataResponse {
            versions: self.gateway.versions(&model.name),
            name: model.name,
            platform: platform(&model.backend),
            inputs,
            outputs,
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let (metadata, mut extensions, request) = request.into_parts();
        let place =
            extensions.remove::<Place>().and_then(|p| p.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut admission = match place {
            Some(admission) => admission,
            None => self.gateway.admit(Protocol::Grpc)?,
        };
        Ok(Response::new(infer(&self.gateway, &mut admission, &metadata, request).await?))
    }

    type ModelStreamInferStream = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (gateway, metadata) = (self.gateway.clone(), Arc::new(metadata));
        // At the end what came is answered, and the stream ends.
        let requests = requests.take_until(self.gateway.stop.clone().cancelled_owned());
        let answers = requests.map(move |request| {
            let (gateway, metadata) = (gateway.clone(), metadata.clone());
            async move {
                let request = request?;
                let id = request.id.clone();
                let outcome = async {
                    let mut admission = gateway.admit(Protocol::Grpc)?;
                    admission.take_bytes(prost::Message::encoded_len(&request))?;
                    infer(&gateway, &mut admission, &metadata, request).await
                };
                Ok(match outcome.await {
                    Ok(response) => {
                        ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                    }
                    Err(failure) => ModelStreamInferResponse {
                        error_message: failure.message,
                        infer_response: Some(ModelInferResponse { id, ..Default::default() }),
                    },
                })
            }
        });
        Ok(Response::new(answers.buffered(STREAM_WIDTH).boxed()))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let mut model = self.gateway.described(&request.name, some(&request.version))?;
        let signature = model.signature.take();
        Ok(Response::new(ModelConfigResponse { config: signature.map(|signature| config(model, &signature)) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let request = request.into_inner();
        let models = match some(&request.name) {
            None => self.gateway.models(),
            Some(name) => vec![self.gateway.model(name, some(&request.version))?],
        };
        let model_stats = models.into_iter().map(|model| statistics(&self.gateway, model)).collect();
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let only_ready = request.into_inner().ready;
        let models = self.gateway.models().into_iter().filter(|m| !only_ready || m.is_ready());
        let models = models.map(|model| {
            let (state, reason) = index_state(&model);
            ModelIndex { name: model.name, version: model.version, state: state.to_owned(), reason }
        });
        Ok(Response::new(RepositoryIndexResponse { models: models.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        let request = request.into_inner();
        let wish = wish(&request.parameters)?;
        let model_name = named(request.repository_name, request.model_name);
        self.gateway.load(&model_name, wish).await?;
        Ok(Response::new(RepositoryModelLoadResponse { model_name, is_loaded: true }))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let request = request.into_inner();
        let model_name = named(request.repository_name, request.model_name);
        self.gateway.unload(&model_name).await?;
        Ok(Response::new(RepositoryModelUnloadResponse { model_name, is_unloaded: true }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_timeout_is_read_as_grpc_writes_it() {
        assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "12", "123456789n", "-1S", "1ü", "1x"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
