// Command kubedog watches one workload with werf's tracker (github.com/werf/kubedog), as nelm does, and reports
// how it ended: 0 ready, 1 failed with the reasons, 2 neither within the time.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/werf/kubedog/pkg/informer"
	"github.com/werf/kubedog/pkg/trackers/dyntracker"
	"github.com/werf/kubedog/pkg/trackers/dyntracker/logstore"
	"github.com/werf/kubedog/pkg/trackers/dyntracker/statestore"
	"github.com/werf/kubedog/pkg/trackers/dyntracker/util"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	klogv1 "k8s.io/klog"
	klog "k8s.io/klog/v2"
)

var kinds = map[string]schema.GroupVersionKind{
	"deployment":  {Group: "apps", Version: "v1", Kind: "Deployment"},
	"statefulset": {Group: "apps", Version: "v1", Kind: "StatefulSet"},
	"daemonset":   {Group: "apps", Version: "v1", Kind: "DaemonSet"},
	"job":         {Group: "batch", Version: "v1", Kind: "Job"},
}

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: kubedog KIND NAME NAMESPACE TIMEOUT")
		os.Exit(3)
	}
	timeout, err := time.ParseDuration(os.Args[4])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	klog.SetOutput(io.Discard)
	klogv1.SetOutput(io.Discard)
	state, err := track(kinds[os.Args[1]], os.Args[2], os.Args[3], timeout)
	os.Exit(report(state, err))
}

// track runs the tracker to its end.
func track(
	gvk schema.GroupVersionKind, name, namespace string, timeout time.Duration,
) (*util.Concurrent[*statestore.ReadinessTaskState], error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	static, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dynamic_, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	discovery := memory.NewMemCacheClient(static.Discovery())
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(discovery)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	replicas, err := replicasOf(ctx, dynamic_, mapper, gvk, name, namespace)
	if err != nil {
		return nil, err
	}
	// werf's default: one failure allowed for each replica
	state := util.NewConcurrent(statestore.NewReadinessTaskState(name, namespace, gvk,
		statestore.ReadinessTaskStateOptions{TotalAllowFailuresCount: replicas}))
	informers := informer.NewConcurrentInformerFactory(
		ctx.Done(), make(chan error, 100), dynamic_, informer.ConcurrentInformerFactoryOptions{})
	tracker, err := dyntracker.NewDynamicReadinessTracker(
		ctx, state, util.NewConcurrent(logstore.NewLogStore()), informers, static, dynamic_, discovery, mapper,
		dyntracker.DynamicReadinessTrackerOptions{Timeout: timeout})
	if err != nil {
		return state, err
	}
	return state, tracker.Track(ctx)
}

func replicasOf(
	ctx context.Context, client dynamic.Interface, mapper *restmapper.DeferredDiscoveryRESTMapper,
	gvk schema.GroupVersionKind, name, namespace string,
) (int, error) {
	gvr, err := util.GVRFromGVK(gvk, mapper)
	if err != nil {
		return 0, err
	}
	object, err := client.Resource(gvr).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	replicas, found, err := unstructured.NestedInt64(object.Object, "spec", "replicas")
	if err != nil || !found {
		return 1, err
	}
	return int(replicas), nil
}

// report prints the errors that the tracker has recorded, and returns the exit code.
func report(state *util.Concurrent[*statestore.ReadinessTaskState], err error) int {
	if state == nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	status := statestore.ReadinessTaskStatusProgressing
	state.RTransaction(func(task *statestore.ReadinessTaskState) {
		status = task.Status()
		for _, resource := range task.ResourceStates() {
			resource.RTransaction(func(resourceState *statestore.ResourceState) {
				for _, errors := range resourceState.Errors() {
					for _, recorded := range errors {
						kind, name := resourceState.GroupVersionKind().Kind, resourceState.Name()
						fmt.Printf("%s/%s: %s\n", kind, name, recorded.Err)
					}
				}
			})
		}
	})
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println(status)
	switch status {
	case statestore.ReadinessTaskStatusReady:
		return 0
	case statestore.ReadinessTaskStatusFailed:
		return 1
	default:
		return 2
	}
}
