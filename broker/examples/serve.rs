//! Serves a folder: `serve FOLDER [ADDRESS]`, prints the address on one line, runs until killed.
#![allow(clippy::print_stdout, reason = "the address line is this program's interface")]

use std::error::Error;
use std::net::SocketAddr;

use broker::{Broker, Config};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: serve FOLDER [ADDRESS]")?;
    let mut config = Config::new(folder);
    if let Some(listen) = arguments.next() {
        config.listen = listen.parse::<SocketAddr>()?;
    }
    let broker = Broker::start(config).await?;
    println!("{}", broker.bootstrap());
    tokio::signal::ctrl_c().await?;
    broker.shutdown().await;
    Ok(())
}
