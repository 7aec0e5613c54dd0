fn main() {
    if std::env::args().nth(1).as_deref() == Some("supervise")
        && let Err(fault) = cricket::executor::supervisor::template::main(cricket::executor::protocol::TEMPLATE_SOCKET)
    {
        eprintln!("cricket supervise: {fault}");
        std::process::exit(1);
    }
}
