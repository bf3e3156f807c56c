package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"
)

// Files in Config.Dir.
const (
	serverCert = "server.crt"
	serverKey  = "server.key"
	accountKey = "service-account.key"
	tokenFile  = "tokens.csv"
	adminFile  = "admin.kubeconfig"
)

// makeCredentials makes a CA, the server's certificate, the key that signs
// ServiceAccount tokens and an admin with a token, valid for this run only.
func (c *Cluster) makeCredentials() error {
	authority, err := newKeyPair(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "weft test CA"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, nil)
	if err != nil {
		return err
	}
	server, err := newKeyPair(&x509.Certificate{
		Subject:     pkix.Name{CommonName: apiServer},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{c.cfg.Bind.AsSlice()},
		DNSNames:    []string{"localhost", "kubernetes.default.svc"},
	}, authority)
	if err != nil {
		return err
	}
	account, err := newKeyPair(&x509.Certificate{Subject: pkix.Name{CommonName: "service accounts"}}, authority)
	if err != nil {
		return err
	}
	c.caPEM, c.admin = authority.certPEM, rand.Text()
	files := map[string][]byte{
		serverCert: server.certPEM, serverKey: server.keyPEM, accountKey: account.keyPEM,
		tokenFile: []byte(c.admin + ",admin,admin,system:masters\n"),
	}
	for name, data := range files {
		if err := os.WriteFile(c.path(name), data, 0o600); err != nil {
			return fmt.Errorf("write credentials: %w", err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(authority.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	if c.cfg.Network != nil {
		transport.DialContext = c.cfg.Network.Dial
	}
	c.client = &http.Client{Transport: transport}
	return c.writeKubeconfig(c.Kubeconfig(), "admin", c.admin)
}

// Kubeconfig is the path of the cluster administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.path(adminFile) }

// writeKubeconfig writes a kubeconfig with one context. JSON is YAML too.
func (c *Cluster) writeKubeconfig(path, user, token string) error {
	type object = map[string]any
	data, err := json.MarshalIndent(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "weft",
		"clusters": []object{{"name": "weft", "cluster": object{"server": c.url, "certificate-authority-data": c.caPEM}}},
		"users":    []object{{"name": user, "user": object{"token": token}}},
		"contexts": []object{{"name": "weft", "context": object{"cluster": "weft", "user": user}}},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// keyPair is a certificate and its private key.
type keyPair struct {
	cert            *x509.Certificate
	key             *ecdsa.PrivateKey
	certPEM, keyPEM []byte
}

// newKeyPair signs template with issuer's key, or with its own if issuer is nil.
func newKeyPair(template *x509.Certificate, issuer *keyPair) (*keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	pair := &keyPair{key: key}
	if issuer == nil {
		issuer = &keyPair{cert: template, key: key}
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(7*24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", template.Subject.CommonName, err)
	}
	if pair.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("read back certificate: %w", err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	pair.certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pair.keyPEM = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	return pair, nil
}
