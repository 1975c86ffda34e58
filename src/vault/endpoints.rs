//! Requests to Vault: paths from validated segments, and the headers that go with them.

use crate::secret::Secret;
use http::{HeaderName, HeaderValue};
use rustify::{
    endpoint::{Endpoint, MiddleWare},
    enums::{RequestMethod, RequestType, ResponseType},
    errors::ClientError,
};
use std::sync::Arc;

/// A request to a path below `/v1/`, the answer to be read by the caller.
#[derive(Clone)]
pub(super) struct Call {
    method: RequestMethod,
    path: String,
    query: Option<String>,
    body: Option<Vec<u8>>,
}

/// What is sent along with a request.
pub(super) struct Headers {
    token: Option<Arc<Secret>>,
    namespace: Option<String>,
}

// === impl Call ===

impl Call {
    pub(super) fn get(path: &str) -> Self {
        Self { method: RequestMethod::GET, path: path.to_owned(), query: None, body: None }
    }

    pub(super) fn delete(path: &str) -> Self {
        Self { method: RequestMethod::DELETE, ..Self::get(path) }
    }

    pub(super) fn post(path: &str, body: &serde_json::Value) -> Self {
        let body = serde_json::to_vec(body).expect("a JSON value must encode");
        Self { method: RequestMethod::POST, body: Some(body), ..Self::get(path) }
    }

    pub(super) fn query(self, query: Option<&str>) -> Self {
        Self { query: query.map(str::to_owned), ..self }
    }
}

impl Endpoint for Call {
    type Response = serde_json::Value;
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        self.method.clone()
    }

    fn query(&self) -> Result<Option<String>, ClientError> {
        Ok(self.query.clone())
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.body.clone())
    }
}

// === impl Headers ===

impl Headers {
    /// For paths that ask for no login. `sys/health` and its like refuse any namespace.
    pub(super) fn none() -> Self {
        Self { token: None, namespace: None }
    }

    pub(super) fn with(token: Option<Arc<Secret>>, namespace: Option<String>) -> Self {
        Self { token, namespace }
    }
}

impl MiddleWare for Headers {
    fn request<E: Endpoint>(&self, _: &E, request: &mut http::Request<Vec<u8>>) -> Result<(), ClientError> {
        let refused = |source: anyhow::Error| ClientError::GenericError { source };
        let uri = request.uri().to_string();
        let start = uri.find("://").map_or(0, |at| at + 3);
        let slash = uri[start..].find('/').map_or(uri.len(), |at| start + at);
        let path = uri[slash..].trim_start_matches('/');
        let versioned = format!("{}/v1/{path}", &uri[..slash]);
        *request.uri_mut() = versioned.parse().map_err(|_| refused(anyhow::anyhow!("not a path")))?;

        let headers = request.headers_mut();
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        let mut insert = |name: &'static str, value: &str, sensitive: bool| {
            // The text of the error is ours: the value may be a token.
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| refused(anyhow::anyhow!("{name} has control characters")))?;
            value.set_sensitive(sensitive);
            headers.insert(HeaderName::from_static(name), value);
            Ok::<_, ClientError>(())
        };
        if let Some(token) = &self.token {
            insert("x-vault-token", token.expose(), true)?;
        }
        if let Some(namespace) = self.namespace.as_deref().filter(|namespace| *namespace != "/") {
            insert("x-vault-namespace", namespace, false)?;
        }
        Ok(())
    }

    fn response<E: Endpoint>(&self, _: &E, _: &mut http::Response<Vec<u8>>) -> Result<(), ClientError> {
        Ok(())
    }
}
