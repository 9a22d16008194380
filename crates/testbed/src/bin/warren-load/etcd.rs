//! The two calls of etcd that the load makes, over gRPC; the fields that it
//! needs of their messages and no others.

use anyhow::{Context, Result};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

const PUT: PathAndQuery = PathAndQuery::from_static("/etcdserverpb.KV/Put");
const RANGE: PathAndQuery = PathAndQuery::from_static("/etcdserverpb.KV/Range");

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// Linearizable unless it says otherwise.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

/// A connection to one member.
pub(crate) struct Etcd(Grpc<Channel>);

impl Etcd {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(Grpc::new(channel))
    }

    /// Writes a value.
    pub(crate) async fn put(&mut self, key: &str, value: u64) -> Result<(), Status> {
        self.usable().await?;
        let request = PutRequest { key: key.into(), value: value.to_string().into() };
        let codec = ProstCodec::<PutRequest, PutResponse>::default();
        self.0.unary(Request::new(request), PUT, codec).await.map(drop)
    }

    /// Reads a value.
    pub(crate) async fn get(&mut self, key: &str) -> Result<u64> {
        self.usable().await?;
        let request = RangeRequest { key: key.into() };
        let codec = ProstCodec::<RangeRequest, RangeResponse>::default();
        let answer = self.0.unary(Request::new(request), RANGE, codec).await?.into_inner();
        let found = answer.kvs.first().with_context(|| format!("{key} is gone"))?;
        let text = str::from_utf8(&found.value).context("a number")?;
        text.parse().context("a number")
    }

    async fn usable(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))
    }
}
