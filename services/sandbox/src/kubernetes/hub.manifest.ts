import { AppError } from '@holdfast/contracts';
import type { NetworkPolicyEgressRule } from './kinds.ts';
import type { ClusterSettings } from './settings.manifest.ts';

type Peers = NonNullable<NetworkPolicyEgressRule['to']>;

/**
 * The only ways out of a sandbox: the hub, and the cluster's DNS where the hub has a name.
 * @throws AppError `cluster.hub-unreachable` when the settings do not say where the hub is
 */
export function hubEgress(settings: Pick<ClusterSettings, 'hubUrl' | 'hubCidrs'>): NetworkPolicyEgressRule[] {
  const url = new URL(settings.hubUrl);
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  const named = !isAddress(host);
  const port = url.port === '' ? (url.protocol === 'wss:' ? 443 : 80) : Number(url.port);
  return [
    { to: hubPeers(host, named, settings.hubCidrs ?? []), ports: [{ protocol: 'TCP', port }] },
    ...(named ? [DNS] : []),
  ];
}

const DNS: NetworkPolicyEgressRule = {
  to: [
    {
      namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'kube-system' } },
      podSelector: { matchLabels: { 'k8s-app': 'kube-dns' } },
    },
  ],
  ports: [
    { protocol: 'UDP', port: 53 },
    { protocol: 'TCP', port: 53 },
  ],
};

function hubPeers(host: string, named: boolean, cidrs: readonly string[]): Peers {
  if (cidrs.length > 0) return cidrs.map((cidr) => ({ ipBlock: { cidr } }));
  if (!named) return [{ ipBlock: { cidr: host.includes(':') ? `${host}/128` : `${host}/32` } }];
  const [, namespace, svc] = host.split('.');
  if (namespace === undefined || svc !== 'svc') {
    throw new AppError(
      'invalid',
      'cluster.hub-unreachable',
      `Pods may reach nothing but the hub, and a network policy knows no names: give the addresses that ${host} has, or the name of a Service of the cluster.`,
    );
  }
  // The policy is judged by the pod behind the Service: its port has to be the Service's own.
  return [
    {
      namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': namespace } },
      podSelector: { matchLabels: { 'app.kubernetes.io/name': 'holdfast', 'app.kubernetes.io/component': 'sandbox' } },
    },
  ];
}

function isAddress(host: string): boolean {
  return host.includes(':') || /^\d+\.\d+\.\d+\.\d+$/.test(host);
}
