import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Binaries } from './binaries.ts';
import type { Certificates } from './certificates.ts';
import type { Component } from './processes.ts';
import { type Bed, TESTBED } from './settings.ts';

/** How soon a lost node is noticed and its pods are given up. */
const NODE_GRACE = '10s';
const POD_TOLERATION_SECONDS = '10';
/** Outside of the cluster the controller is a user; it gets the rights that upstream gives to its service account. */
export const AGENT_SANDBOX_USER = 'agent-sandbox';
/** Whom the sandbox service acts as: the account that the chart's rights and policies are for. */
export const SERVICE_USER = 'system:serviceaccount:holdfast:holdfast-sandbox';

/** The programs of the control plane, in the order of their start. */
export const CONTROL_PLANE = [
  'etcd',
  'apiserver',
  'controller-manager',
  'scheduler',
  'provisioner',
  'controller',
] as const;
export type PlanePart = (typeof CONTROL_PLANE)[number];

export async function controlPlane(
  bed: Bed,
  binaries: Binaries,
  certificates: Certificates,
): Promise<Readonly<Record<PlanePart, Component>>> {
  const { loopback, hostAddress, stateDir } = bed;
  const flags = (values: Readonly<Record<string, string>>): string[] =>
    Object.entries(values).map(([name, value]) => `--${name}=${value}`);
  const etcdUrl = `http://${loopback}:2379`;
  const tokens = await certificates.signingKey();
  const server = await certificates.issue('apiserver', '/CN=kube-apiserver', [
    ...[hostAddress, '127.0.0.1', loopback, bed.serviceAddress].map((address) => `IP:${address}`),
    ...['kubernetes.default.svc', 'kubernetes.default', 'localhost'].map((name) => `DNS:${name}`),
  ]);
  const kubeletClient = await certificates.issue('kubelet-client', '/O=system:masters/CN=kube-apiserver');
  await certificates.kubeconfig('admin', '/O=system:masters/CN=admin', bed.kubeconfig);
  await certificates.kubeconfig('service', `/CN=${SERVICE_USER}`, bed.serviceKubeconfig);
  const managerConfig = await certificates.kubeconfig('controller-manager', '/CN=system:kube-controller-manager');
  const schedulerConfig = await certificates.kubeconfig('scheduler', '/CN=system:kube-scheduler');
  const sandboxConfig = await certificates.kubeconfig('agent-sandbox', `/CN=${AGENT_SANDBOX_USER}`);
  const provisioner = join(TESTBED, 'src/provisioner.ts');
  return {
    etcd: {
      name: 'etcd',
      command: binaries.etcd,
      args: flags({
        'data-dir': join(stateDir, 'etcd'),
        'listen-client-urls': etcdUrl,
        'advertise-client-urls': etcdUrl,
        'listen-peer-urls': `http://${loopback}:2380`,
        'initial-advertise-peer-urls': `http://${loopback}:2380`,
        'initial-cluster': `default=http://${loopback}:2380`,
        // A bed is made anew rather than recovered.
        'unsafe-no-fsync': 'true',
        'auto-compaction-retention': '1h',
      }),
    },
    apiserver: {
      name: 'apiserver',
      command: binaries.apiserver,
      args: flags({
        'etcd-servers': etcdUrl,
        'bind-address': hostAddress,
        'advertise-address': hostAddress,
        'secure-port': new URL(bed.apiUrl).port,
        'service-cluster-ip-range': bed.serviceSubnet,
        'authorization-mode': 'Node,RBAC',
        'enable-admission-plugins': 'NodeRestriction',
        'tls-cert-file': server.certificate,
        'tls-private-key-file': server.key,
        'client-ca-file': certificates.authority,
        'service-account-issuer': 'https://kubernetes.default.svc',
        'service-account-key-file': tokens.publicKey,
        'service-account-signing-key-file': tokens.privateKey,
        'kubelet-client-certificate': kubeletClient.certificate,
        'kubelet-client-key': kubeletClient.key,
        'kubelet-certificate-authority': certificates.authority,
        // By name they are not found: there is no DNS.
        'kubelet-preferred-address-types': 'InternalIP',
        'default-not-ready-toleration-seconds': POD_TOLERATION_SECONDS,
        'default-unreachable-toleration-seconds': POD_TOLERATION_SECONDS,
      }),
    },
    'controller-manager': {
      name: 'controller-manager',
      command: binaries.controllerManager,
      args: flags({
        kubeconfig: managerConfig,
        'bind-address': loopback,
        'leader-elect': 'false',
        'use-service-account-credentials': 'true',
        'root-ca-file': certificates.authority,
        'service-account-private-key-file': tokens.privateKey,
        'cluster-signing-cert-file': certificates.authority,
        'cluster-signing-key-file': certificates.authorityKey,
        'node-monitor-period': '2s',
        'node-monitor-grace-period': NODE_GRACE,
        'kube-api-qps': '100',
        'kube-api-burst': '200',
      }),
    },
    scheduler: {
      name: 'scheduler',
      command: binaries.scheduler,
      args: flags({ kubeconfig: schedulerConfig, 'bind-address': loopback, 'leader-elect': 'false' }),
    },
    provisioner: {
      name: 'provisioner',
      command: process.execPath,
      args: ['--no-warnings', provisioner, bed.kubeconfig, join(stateDir, 'volumes')],
      inputs: [readFileSync(provisioner, 'utf8')],
      movable: true,
    },
    controller: {
      name: 'controller',
      command: binaries.agentSandbox,
      args: flags({
        kubeconfig: sandboxConfig,
        extensions: 'true',
        'leader-elect': 'false',
        'enable-webhook': 'false',
        'metrics-bind-address': `${loopback}:8080`,
        'health-probe-bind-address': `${loopback}:8081`,
        'sandbox-warm-pool-concurrent-workers': '4',
        'kube-api-burst': '200',
      }),
    },
  };
}
