import { hubEgress } from './hub.manifest.ts';
import type { LimitRange, Namespace, NetworkPolicy, ResourceQuota, ServiceAccount } from './kinds.ts';
import { ANNOTATIONS, idHash, LABELS, namespaceName, SERVICE_ACCOUNT } from './names.ts';
import { type ClusterSettings, cpu, mebibytes, ownLabels } from './settings.manifest.ts';

export type NamespaceObject = Namespace | ServiceAccount | ResourceQuota | LimitRange | NetworkPolicy;

/**
 * A workspace's namespace and what holds for everything in it, in the order to apply: Pod Security *restricted*, the
 * quota, bounds for whatever has none of its own, and a network that leads to the hub alone.
 */
export function namespaceObjects(settings: ClusterSettings, workspaceId: string): readonly NamespaceObject[] {
  const namespace = namespaceName(settings.installation, workspaceId);
  const labels = { ...ownLabels(settings), [LABELS.workspace]: idHash(workspaceId) };
  const annotations = { [ANNOTATIONS.workspaceId]: workspaceId };
  const named = (name: string) => ({ name, namespace, labels, annotations });
  const { quota } = settings;
  return [
    {
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: {
        name: namespace,
        labels: {
          ...labels,
          'pod-security.kubernetes.io/enforce': 'restricted',
          'pod-security.kubernetes.io/audit': 'restricted',
          'pod-security.kubernetes.io/warn': 'restricted',
        },
        annotations,
      },
    },
    {
      apiVersion: 'networking.k8s.io/v1',
      kind: 'NetworkPolicy',
      metadata: named('hub-only'),
      // None, rather than not said: it is taken back from whoever adds one.
      spec: { podSelector: {}, policyTypes: ['Ingress', 'Egress'], ingress: [], egress: hubEgress(settings) },
    },
    {
      apiVersion: 'v1',
      kind: 'ResourceQuota',
      metadata: named('workspace'),
      spec: {
        hard: {
          pods: String(quota.pods),
          'limits.cpu': cpu(quota.cpuMillis),
          'limits.memory': mebibytes(quota.memoryMib),
          'requests.storage': mebibytes(quota.storageMib),
          // Nothing listens in a sandbox.
          services: '0',
        },
      },
    },
    {
      apiVersion: 'v1',
      kind: 'LimitRange',
      metadata: named('workspace'),
      spec: {
        limits: [
          {
            type: 'Container',
            default: { cpu: cpu(settings.cpuMillis), memory: mebibytes(settings.memoryMib) },
            defaultRequest: { cpu: cpu(settings.cpuRequestMillis), memory: mebibytes(settings.memoryMib) },
          },
        ],
      },
    },
    { apiVersion: 'v1', kind: 'ServiceAccount', metadata: named(SERVICE_ACCOUNT), automountServiceAccountToken: false },
  ];
}
