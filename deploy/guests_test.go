package deploy

import (
	"reflect"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// document decodes the one object of a kind in a manifest; an unknown field is
// an error.
func document[T any](t *testing.T, manifest, kind string) (object T) {
	t.Helper()
	found := 0
	for _, text := range strings.Split(read(t, manifest), "\n---\n") {
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(text), &head); err != nil {
			t.Fatal(err)
		}
		if head.Kind != kind {
			continue
		}
		found++
		if err := yaml.UnmarshalStrict([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
	}
	if found != 1 {
		t.Fatalf("%s has %d objects of kind %s, want one", manifest, found, kind)
	}
	return object
}

// revokeJob is the Pod that ends expired invites.
func revokeJob(t *testing.T) corev1.PodSpec {
	t.Helper()
	return document[batchv1.CronJob](t, "guests.yaml", "CronJob").Spec.JobTemplate.Spec.Template.Spec
}

// TestGuests holds that the job that ends expired invites may do nothing else,
// and that it is of the version and namespace of the rest.
func TestGuests(t *testing.T) {
	const file = "guests.yaml"
	m := decode(t)
	if namespace := document[corev1.Namespace](t, file, "Namespace"); !reflect.DeepEqual(namespace, m.namespace) {
		t.Errorf("namespace is %+v, that of weft.yaml %+v: whichever is applied last would win", namespace, m.namespace)
	}
	account := document[corev1.ServiceAccount](t, file, "ServiceAccount")
	role := document[rbacv1.ClusterRole](t, file, "ClusterRole")
	if want := []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"list", "delete"}}}; !reflect.DeepEqual(role.Rules, want) {
		t.Errorf("rules are %+v, want %+v", role.Rules, want)
	}
	binding := document[rbacv1.ClusterRoleBinding](t, file, "ClusterRoleBinding")
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: account.Name, Namespace: m.namespace.Name}}
	if binding.RoleRef.Name != role.Name || !reflect.DeepEqual(binding.Subjects, subjects) {
		t.Errorf("binding is %+v", binding)
	}
	for _, want := range []string{
		"request.userInfo.username == 'system:serviceaccount:" + account.Namespace + ":" + account.Name + "'",
		"oldObject.metadata.?labels[?'weft-net.github.io/guest'] == optional.of('true')",
	} {
		if !strings.Contains(read(t, file), want) {
			t.Errorf("%s lacks %s", file, want)
		}
	}
	pod := revokeJob(t)
	if pod.ServiceAccountName != account.Name || pod.HostNetwork || len(pod.Volumes) > 0 || len(pod.Containers) != 1 {
		t.Errorf("pod is %+v", pod)
	}
	container := pod.Containers[0]
	if image := m.containers()[0].Image; container.Image != image {
		t.Errorf("image is %s, that of weft.yaml %s", container.Image, image)
	}
}
