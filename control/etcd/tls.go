package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// checkEndpoints tells whether the endpoints are spoken to with TLS. The
// client takes one scheme for all of them.
func checkEndpoints(endpoints []string) (secure bool, err error) {
	if len(endpoints) == 0 {
		return false, errors.New("no Endpoints; set them, as in http://127.0.0.1:2379")
	}
	schemes := map[string]bool{}
	for _, endpoint := range endpoints {
		scheme := "http"
		if strings.Contains(endpoint, "://") {
			parsed, err := url.Parse(endpoint)
			if err != nil {
				return false, errors.New("an endpoint is not a URL; want http://host:port or https://host:port")
			}
			if parsed.User != nil {
				return false, errors.New("an endpoint holds a user name; use Username and Password")
			}
			scheme = parsed.Scheme
		}
		switch scheme {
		case "http", "https", "unix", "unixs":
			schemes[scheme] = true
		default:
			return false, fmt.Errorf("endpoint %q; want http://host:port or https://host:port", endpoint)
		}
	}
	if len(schemes) > 1 {
		return false, fmt.Errorf("mixed schemes in Endpoints %s; use one for all", strings.Join(endpoints, ","))
	}
	return schemes["https"] || schemes["unixs"], nil
}

// makeTLS returns nil where TLS is not spoken.
func makeTLS(cfg Config, secure bool) (*tls.Config, error) {
	if (cfg.KeyFile == "") != (cfg.CertFile == "") {
		return nil, errors.New("KeyFile and CertFile belong together; set both or none")
	}
	if !secure {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CAFile: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CAFile: %s holds no PEM certificate", cfg.CAFile)
		}
	}
	if cfg.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			certificate, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("read CertFile %s and KeyFile %s: %w", cfg.CertFile, cfg.KeyFile, err)
			}
			return &certificate, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return config, nil
}
