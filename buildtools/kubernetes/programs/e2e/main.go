// Upstream's External.Storage suite as a program: its specs, its framework, and nothing of the rest of test/e2e.
//
// Built by sources.py in the module that holds Kubernetes itself.  Flags are upstream's and ginkgo's: --kubeconfig, --storage.testdriver,
// --ginkgo.focus, --ginkgo.json-report.  Exit code 0 when every spec that ran has passed.
package main

import (
	"flag"
	"os"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"

	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"

	// What specs are labelled with must be known before they are defined.
	_ "k8s.io/kubernetes/test/e2e/feature"

	// --storage.testdriver, which defines the specs.
	_ "k8s.io/kubernetes/test/e2e/storage/external"

	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
)

type verdict struct{}

func (verdict) Fail() {}

func main() {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	framework.AfterReadingAllFlags(&framework.TestContext)
	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := framework.CreateGinkgoConfig()
	if !ginkgo.RunSpecs(verdict{}, "External.Storage", suite, reporter) {
		os.Exit(1)
	}
}
