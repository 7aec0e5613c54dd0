//go:build clients

// Package kubelet names what scripts/clients builds, so that go.mod and go.sum hold all that the build needs.
package kubelet

import _ "k8s.io/kubernetes/cmd/kubelet/app"
