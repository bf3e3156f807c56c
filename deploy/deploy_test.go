// Package deploy tests what is shipped: the manifests, the image's recipe and
// the systemd unit. It holds no code.
package deploy

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/control/cniconf"
	"github.com/weft-net/weft/control/netconf"
)

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// manifest is weft.yaml, decoded.
type manifest struct {
	namespace corev1.Namespace
	account   corev1.ServiceAccount
	role      rbacv1.ClusterRole
	binding   rbacv1.ClusterRoleBinding
	config    corev1.ConfigMap
	daemons   appsv1.DaemonSet
}

// decode reads weft.yaml; an unknown field or a seventh object is an error.
func decode(t *testing.T) manifest {
	t.Helper()
	var m manifest
	targets := map[string]any{
		"Namespace": &m.namespace, "ServiceAccount": &m.account, "ClusterRole": &m.role,
		"ClusterRoleBinding": &m.binding, "ConfigMap": &m.config, "DaemonSet": &m.daemons,
	}
	for _, document := range strings.Split(read(t, "weft.yaml"), "\n---\n") {
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(document), &head); err != nil {
			t.Fatal(err)
		}
		target, known := targets[head.Kind]
		if !known {
			t.Fatalf("weft.yaml has a %q it should not have, or has it twice", head.Kind)
		}
		delete(targets, head.Kind)
		if err := yaml.UnmarshalStrict([]byte(document), target); err != nil {
			t.Fatalf("%s: %v", head.Kind, err)
		}
	}
	if len(targets) > 0 {
		t.Fatalf("weft.yaml lacks %v", targets)
	}
	return m
}

// containers are all containers of the DaemonSet's pods.
func (m manifest) containers() []corev1.Container {
	pod := m.daemons.Spec.Template.Spec
	return slices.Concat(pod.InitContainers, pod.Containers)
}

// TestRights holds that an agent may do exactly what it needs.
func TestRights(t *testing.T) {
	m := decode(t)
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"nodes/status"}, Verbs: []string{"patch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
		{APIGroups: []string{""}, Resources: []string{"services"}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
	}
	if !reflect.DeepEqual(m.role.Rules, want) {
		t.Errorf("rules are %+v, want %+v", m.role.Rules, want)
	}
	if m.binding.RoleRef.Name != m.role.Name || m.binding.RoleRef.Kind != "ClusterRole" {
		t.Errorf("binding refers to %+v", m.binding.RoleRef)
	}
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: m.account.Name, Namespace: m.namespace.Name}}
	if !reflect.DeepEqual(m.binding.Subjects, subjects) {
		t.Errorf("subjects are %+v, want %+v", m.binding.Subjects, subjects)
	}
	if name := m.daemons.Spec.Template.Spec.ServiceAccountName; name != m.account.Name {
		t.Errorf("pods run as %q, want %q", name, m.account.Name)
	}
}

// TestPrivileges holds what the containers may do on the host.
func TestPrivileges(t *testing.T) {
	m := decode(t)
	pod := m.daemons.Spec.Template.Spec
	if !pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Errorf("host namespaces: network %t, PID %t, IPC %t; want the network's alone", pod.HostNetwork, pod.HostPID, pod.HostIPC)
	}
	if pod.SecurityContext == nil || pod.SecurityContext.SeccompProfile == nil || pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("seccomp profile is not RuntimeDefault")
	}
	isTrue := func(b *bool) bool { return b != nil && *b }
	for _, container := range m.containers() {
		var add []corev1.Capability
		if container.Name == "weft" {
			add = []corev1.Capability{"NET_ADMIN"}
		}
		sc := container.SecurityContext
		switch {
		case sc == nil || sc.Capabilities == nil:
			t.Errorf("%s: no security context", container.Name)
		case isTrue(sc.Privileged), !isTrue(sc.ReadOnlyRootFilesystem), sc.AllowPrivilegeEscalation == nil, isTrue(sc.AllowPrivilegeEscalation):
			t.Errorf("%s: security context is %+v", container.Name, sc)
		case !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}), !slices.Equal(sc.Capabilities.Add, add):
			t.Errorf("%s: capabilities are %+v, want only %v", container.Name, sc.Capabilities, add)
		}
	}
}

// TestMounts holds which of the host's directories are mounted, and how.
func TestMounts(t *testing.T) {
	m := decode(t)
	pod := m.daemons.Spec.Template.Spec
	sources := map[string]string{}
	for _, volume := range pod.Volumes {
		if volume.ConfigMap != nil {
			sources[volume.Name] = "ConfigMap " + volume.ConfigMap.Name
			continue
		}
		if volume.HostPath == nil || *volume.HostPath.Type != corev1.HostPathDirectoryOrCreate {
			t.Errorf("volume %s is %+v", volume.Name, volume.VolumeSource)
			continue
		}
		sources[volume.Name] = volume.HostPath.Path
	}
	got := map[string]string{}
	for _, container := range m.containers() {
		for _, mount := range container.VolumeMounts {
			mode := "rw"
			if mount.ReadOnly {
				mode = "ro"
			}
			got[container.Name+" "+mount.MountPath] = mode + " " + sources[mount.Name]
		}
	}
	want := map[string]string{
		"install-cni /opt/cni/bin":      "rw /opt/cni/bin",
		"install-cni /etc/cni/net.d":    "rw /etc/cni/net.d",
		"install-cni /etc/kube-flannel": "ro ConfigMap " + m.config.Name,
		"weft /etc/kube-flannel":        "ro ConfigMap " + m.config.Name,
		"weft /run/flannel":             "rw /run/flannel",
		"weft /run/weft":                "rw /run/weft",
		"weft /var/lib/weft":            "rw /var/lib/weft",
		"weft /dev/net":                 "ro /dev/net",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("mounts are\n%v, want\n%v", got, want)
	}
}

// TestScheduling holds that every Linux node gets an agent, and keeps it.
func TestScheduling(t *testing.T) {
	m := decode(t)
	pod := m.daemons.Spec.Template.Spec
	if want := []corev1.Toleration{{Operator: corev1.TolerationOpExists}}; !reflect.DeepEqual(pod.Tolerations, want) {
		t.Errorf("tolerations are %+v, want %+v: everything, NoExecute included", pod.Tolerations, want)
	}
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("priority class is %q", pod.PriorityClassName)
	}
	if want := map[string]string{"kubernetes.io/os": "linux"}; !reflect.DeepEqual(pod.NodeSelector, want) {
		t.Errorf("node selector is %v, want %v", pod.NodeSelector, want)
	}
	if m.daemons.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable == nil {
		t.Error("maxUnavailable is not set")
	}
	if !reflect.DeepEqual(m.daemons.Spec.Selector.MatchLabels, m.daemons.Spec.Template.Labels) {
		t.Errorf("selector %v does not match labels %v", m.daemons.Spec.Selector.MatchLabels, m.daemons.Spec.Template.Labels)
	}
	for _, object := range []interface{ GetNamespace() string }{&m.account, &m.config, &m.daemons} {
		if object.GetNamespace() != m.namespace.Name {
			t.Errorf("%T is in namespace %q", object, object.GetNamespace())
		}
	}
}

// TestAgentContainer holds what the agent needs to find its Node and what the
// kubelet needs to see how it is.
func TestAgentContainer(t *testing.T) {
	agent := decode(t).daemons.Spec.Template.Spec.Containers[0]
	var nodeName string
	for _, variable := range agent.Env {
		if variable.Name == "NODE_NAME" && variable.ValueFrom != nil && variable.ValueFrom.FieldRef != nil {
			nodeName = variable.ValueFrom.FieldRef.FieldPath
		}
	}
	if nodeName != "spec.nodeName" {
		t.Errorf("NODE_NAME comes from %q", nodeName)
	}
	for path, probe := range map[string]*corev1.Probe{"/healthz": agent.LivenessProbe, "/readyz": agent.ReadinessProbe} {
		switch {
		case probe == nil || probe.HTTPGet == nil:
			t.Errorf("no probe of %s", path)
		case probe.HTTPGet.Path != path,
			!slices.Contains(agent.Args, "--healthz-ip="+probe.HTTPGet.Host),
			!slices.Contains(agent.Args, "--healthz-port="+probe.HTTPGet.Port.String()):
			t.Errorf("probe of %s is %+v, the agent has %v", path, probe.HTTPGet, agent.Args)
		}
	}
}

// weft builds the agent, once, unless make has done so.
var weft = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("WEFT_BIN"); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "weft-deploy")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "weft")
	return path, exec.CommandContext(context.Background(), "go", "build", "-o", path, "../cmd/weft").Run()
})

// TestFlagsAreAccepted holds that the program knows every command and flag of
// the manifest.
func TestFlagsAreAccepted(t *testing.T) {
	path, err := weft()
	if err != nil {
		t.Fatalf("build weft: %v", err)
	}
	if os.Getenv("WEFT_BIN") == "" {
		t.Cleanup(func() { os.RemoveAll(filepath.Dir(path)) })
	}
	for _, container := range append(decode(t).containers(), revokeJob(t).Containers...) {
		// Flags are parsed in order, so the help comes only if all are good.
		command := exec.CommandContext(t.Context(), path, append(container.Args, "--help")...)
		command.Env = append(os.Environ(), "FLANNELD_V=0")
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%s: weft %s: %v\n%s", container.Name, strings.Join(container.Args, " "), err, out)
		}
	}
}

// TestConfiguration holds that the ConfigMap's files are good, and that the
// image brings every plugin they name.
func TestConfiguration(t *testing.T) {
	m := decode(t)
	if _, err := netconf.Parse([]byte(m.config.Data["net-conf.json"])); err != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	conf, from := filepath.Join(dir, "cni-conf.json"), filepath.Join(dir, "plugins")
	if err := os.WriteFile(conf, []byte(m.config.Data["cni-conf.json"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(from, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, plugin := range imagePlugins(t) {
		if err := os.WriteFile(filepath.Join(from, plugin), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := cniconf.Install(cniconf.Config{
		From: from, BinDir: filepath.Join(dir, "bin"), Conf: conf, ConfDir: filepath.Join(dir, "net.d"),
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Error(err)
	}
}

// imagePlugins are the plugins that the Dockerfile puts where the manifest
// installs them from.
func imagePlugins(t *testing.T) []string {
	t.Helper()
	recipe := read(t, "Dockerfile")
	list := regexp.MustCompile(`for plugin in ([^;]+);`).FindStringSubmatch(recipe)
	if list == nil {
		t.Fatal("Dockerfile has no list of plugins")
	}
	plugins := []string{}
	for _, path := range strings.Fields(list[1]) {
		plugins = append(plugins, filepath.Base(path))
	}
	for _, line := range regexp.MustCompile(`-o /image/opt/weft/cni/(\S+) `).FindAllStringSubmatch(recipe, -1) {
		plugins = append(plugins, filepath.Base(line[1]))
	}
	for _, must := range []string{"weft-cni", "bridge", "host-local", "loopback", "portmap"} {
		if !slices.Contains(plugins, must) {
			t.Errorf("image has the plugins %v, and not %s", plugins, must)
		}
	}
	return plugins
}

// TestImage holds that the image is nothing but our binaries, at the version
// of the plugins that are tested.
func TestImage(t *testing.T) {
	recipe, makefile := read(t, "Dockerfile"), read(t, "../Makefile")
	if last := recipe[strings.LastIndex(recipe, "FROM "):]; !strings.HasPrefix(last, "FROM scratch\n") || strings.Contains(last, "RUN") {
		t.Errorf("last stage is\n%s", last)
	}
	tested := regexp.MustCompile(`(?m)^CNI_VERSION\s*:=\s*(\S+)$`).FindStringSubmatch(makefile)
	shipped := regexp.MustCompile(`(?m)^ARG CNI_PLUGINS_VERSION=(\S+)$`).FindStringSubmatch(recipe)
	if tested == nil || shipped == nil || tested[1] != shipped[1] {
		t.Errorf("plugins shipped are %v, those tested %v", shipped, tested)
	}
	tags := regexp.MustCompile(`(?m)^TAGS\s*:=\s*(\S+)$`).FindStringSubmatch(makefile)
	if tags == nil || !strings.Contains(recipe, " "+tags[1]+" ") {
		t.Errorf("image is not built with the Makefile's tags %v", tags)
	}
	release := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))
	if release == nil || !strings.Contains(recipe, "golang:"+release[1]+" ") {
		t.Errorf("image is not built with Go %v", release)
	}
	for _, container := range decode(t).containers() {
		if container.Image != decode(t).containers()[0].Image || strings.HasSuffix(container.Image, ":latest") {
			t.Errorf("%s has the image %s", container.Name, container.Image)
		}
	}
}

// TestUnits holds what agents count on from systemd.
func TestUnits(t *testing.T) {
	common := []string{"Type=notify", "TimeoutStartSec=infinity", "Restart=always", "RuntimeDirectoryPreserve=yes"}
	for name, lines := range map[string][]string{
		"weft.service": {
			"ExecStart=/usr/local/bin/weft agent", "RuntimeDirectory=flannel weft", "CapabilityBoundingSet=CAP_NET_ADMIN",
			"DeviceAllow=/dev/net/tun rw", "WantedBy=multi-user.target",
		},
		// KillMode: what holds the network namespace has to outlive the agent.
		"weft-rootless.service": {
			"ExecStart=/usr/local/bin/weft agent --rootless", "RuntimeDirectory=weft", "KillMode=process", "WantedBy=default.target",
		},
	} {
		unit := read(t, name)
		for _, line := range append(lines, common...) {
			if !strings.Contains(unit, "\n"+line+"\n") {
				t.Errorf("%s lacks %q", name, line)
			}
		}
	}
	// A user's systemd puts a confined program into a user namespace of its own, from which those of the
	// agent cannot be entered again.
	for _, forbidden := range []string{"RestrictNamespaces=", "ProtectSystem=", "ProtectHome=", "PrivateTmp=", "PrivateUsers=", "User="} {
		if strings.Contains(read(t, "weft-rootless.service"), "\n"+forbidden) {
			t.Errorf("weft-rootless.service has %s", forbidden)
		}
	}
}
