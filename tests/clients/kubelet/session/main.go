//go:build clients

// Command session speaks to a kubelet's streaming endpoints as kubectl does, with Kubernetes' own client library:
//
//	session exec|attach URL            standard streams are the session's; its exit status is ours
//	session exec-websocket URL         the same over WebSocket
//	session port-forward URL PORT      one connection: standard input there, what comes back to standard output
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

func main() {
	err := run(os.Args[1:])
	var exit exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitStatus())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "session:", err)
		os.Exit(125)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("session COMMAND URL [PORT]")
	}
	target, err := url.Parse(args[1])
	if err != nil {
		return err
	}
	// The kubelet's certificate is its own.
	config := &rest.Config{Host: args[1], TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	switch {
	case args[0] == "exec" || args[0] == "attach":
		executor, err := remotecommand.NewSPDYExecutor(config, "POST", target)
		if err != nil {
			return err
		}
		return stream(executor, target)
	case args[0] == "exec-websocket":
		executor, err := remotecommand.NewWebSocketExecutor(config, "GET", args[1])
		if err != nil {
			return err
		}
		return stream(executor, target)
	case args[0] == "port-forward" && len(args) == 3:
		return forward(config, target, args[2])
	}
	return fmt.Errorf("there is no command %s", args[0])
}

func stream(executor remotecommand.Executor, target *url.URL) error {
	options := remotecommand.StreamOptions{Stdout: os.Stdout, Stderr: os.Stderr}
	if strings.Contains(target.RawQuery, "input=1") {
		options.Stdin = os.Stdin
	}
	return executor.StreamWithContext(context.Background(), options)
}

func forward(config *rest.Config, target *url.URL, port string) error {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	connection, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return err
	}
	defer connection.Close()
	headers := http.Header{}
	headers.Set(v1.StreamType, v1.StreamTypeError)
	headers.Set(v1.PortHeader, port)
	headers.Set(v1.PortForwardRequestIDHeader, "0")
	failure, err := connection.CreateStream(headers)
	if err != nil {
		return err
	}
	failure.Close()
	headers.Set(v1.StreamType, v1.StreamTypeData)
	data, err := connection.CreateStream(headers)
	if err != nil {
		return err
	}
	if _, err := io.Copy(data, os.Stdin); err != nil {
		return err
	}
	data.Close()
	if _, err := io.Copy(os.Stdout, data); err != nil {
		return err
	}
	message, err := io.ReadAll(failure)
	if err == nil && len(message) > 0 {
		err = errors.New(string(message))
	}
	return err
}
