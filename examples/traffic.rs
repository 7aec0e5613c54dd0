//! Measures a way through the network: `scripts/bench-network` runs this in pods and outside; it is not part of what is
//! shipped.
//!
//! `traffic serve PORT` takes connections. The first byte says what the client wants: everything swallowed, or every
//! byte sent back. `traffic measure NAME ADDRESS:PORT` prints one line: what came through in a second, and how long
//! a byte takes there and back.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;

/// At once; what the drivers carry in one packet fits several times.
const PIECE: usize = 256 << 10;
/// How long is sent.
const SENDING: Duration = Duration::from_secs(2);
/// Bytes there and back.
const TRIPS: usize = 4000;
/// For the server to be there.
const PATIENCE: Duration = Duration::from_secs(30);
const SWALLOW: u8 = b's';
const ECHO: u8 = b'e';

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", port] => serve(port.parse()?),
        ["measure", name, address] => measure(name, address),
        _ => anyhow::bail!("usage: traffic serve PORT | traffic measure NAME ADDRESS:PORT"),
    }
}

fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listening")?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A client that leaves early is not our concern.
        std::thread::spawn(move || answer(stream).ok());
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    let mut buffer = vec![0; PIECE];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            // Tells the client that all has arrived.
            return stream.write_all(&[SWALLOW]);
        }
        if wanted == [ECHO] {
            stream.write_all(&buffer[..length])?;
        }
    }
}

fn measure(name: &str, address: &str) -> anyhow::Result<()> {
    let (bytes, took) = send(dial(address, SWALLOW)?)?;
    let trip = there_and_back(dial(address, ECHO)?)?;
    let gigabits = bytes as f64 * 8.0 / 1e9 / took.as_secs_f64();
    println!("{name:<48} {gigabits:>8.2} Gbit/s {:>9.0} us", trip.as_secs_f64() * 1e6);
    Ok(())
}

/// A connection that is served: a forwarder takes one before it knows whether anybody is behind it.
fn dial(address: &str, wanted: u8) -> anyhow::Result<TcpStream> {
    let started = Instant::now();
    loop {
        let served = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&[ECHO, ECHO])?;
            stream.read_exact(&mut [0])
        });
        match served {
            Ok(()) => break,
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(error).context(format!("nobody answers at {address}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[wanted])?;
    Ok(stream)
}

/// Until the last byte has arrived.
fn send(mut stream: TcpStream) -> anyhow::Result<(u64, Duration)> {
    let piece = vec![0; PIECE];
    let (started, mut bytes) = (Instant::now(), 0);
    while started.elapsed() < SENDING {
        stream.write_all(&piece)?;
        bytes += PIECE as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0]).context("waiting until all has arrived")?;
    Ok((bytes, started.elapsed()))
}

/// The middle of many.
fn there_and_back(mut stream: TcpStream) -> anyhow::Result<Duration> {
    let mut trips = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let started = Instant::now();
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0])?;
        trips.push(started.elapsed());
    }
    trips.sort_unstable();
    Ok(trips[TRIPS / 2])
}
