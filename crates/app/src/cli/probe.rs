//! Whether a node answers a command that its agent must carry out.
//!
//! What a node that starts asks itself before it calls itself ready.

use std::path::Path;
use std::time::Duration;

use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::client::{Client, Target};
use super::failure::{Exit, Failure};

/// Between questions: the agent connects within milliseconds.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks for the images of the node until it tells them.
///
/// # Errors
/// Anything but "not yet", or `limit` has passed.
pub(crate) async fn until_answered(socket: &Path, limit: Duration) -> Result<(), Failure> {
    let asked = async {
        let mut client = Client::connect(Target::Socket(socket.to_owned())).await?;
        loop {
            match ask(&mut client).await {
                Err(failure) if failure.exit == Exit::Unreachable => {}
                outcome => return outcome,
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let seconds = limit.as_secs();
            Err(Failure::failed(format!("the node's agent did not answer within {seconds} s")))
        }
    }
}

async fn ask(client: &mut Client) -> Result<(), Failure> {
    let mut frames = client.open(open_stream::Kind::ImageList(v1::ImageList {})).await?;
    while let Some(message) = frames.from.message().await? {
        if let Some(frame::Kind::Error(error)) = message.kind {
            return Err(error.into());
        }
    }
    Ok(())
}
