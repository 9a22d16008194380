//! `grpc.health.v1.Health/Check`, without TLS.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::net::SocketAddr;

use tonic::Code;
use tonic::transport::Endpoint;
use warren_proto::grpc_health::HealthCheckRequest;
use warren_proto::grpc_health::health_check_response::ServingStatus;
use warren_proto::grpc_health::health_client::HealthClient;

use crate::effects::chain;

/// An answer is two bytes long.
const ANSWER_BYTES: usize = 4096;

pub(super) async fn ask(at: SocketAddr, service: &str) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{at}")).map_err(|e| chain(&e))?;
    let endpoint = endpoint.user_agent("warren-health").map_err(|e| chain(&e))?;
    let channel =
        endpoint.connect().await.map_err(|e| format!("connect to {at}: {}", chain(&e)))?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
    let request = HealthCheckRequest { service: service.to_owned() };
    let named = || match service {
        "" => "gRPC health".to_owned(),
        service => format!("gRPC health of {service}"),
    };
    match client.check(request).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            status => Err(format!("{}: {}", named(), status.as_str_name())),
        },
        Err(status) if status.code() == Code::Unimplemented => {
            Err(format!("{}: the server does not implement grpc.health.v1.Health", named()))
        }
        Err(status) => Err(format!("{}: {:?} {}", named(), status.code(), status.message())),
    }
}
