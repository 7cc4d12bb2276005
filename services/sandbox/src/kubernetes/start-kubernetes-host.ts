import { AppError } from '@holdfast/contracts';
import type { SandboxConfig } from '../config.ts';
import type { HostParts } from '../host/sandbox-host.port.ts';
import { hubCertificate } from '../hub/certificate.ts';
import { ClusterStore } from './cluster.store.ts';
import { Cluster } from './cluster.ts';
import { KubernetesHost } from './kubernetes-host.ts';
import type { ClusterSettings } from './settings.manifest.ts';

const MIB = 1024 ** 2;
const mib = (bytes: number): number => Math.ceil(bytes / MIB);

/** @throws AppError `config.invalid` for settings that only show their fault together */
export async function startKubernetesHost(parts: HostParts, config: SandboxConfig): Promise<KubernetesHost> {
  const tls = await hubTls(config);
  const host = config.HUB_HOST.includes(':') ? `[${config.HUB_HOST}]` : config.HUB_HOST;
  const settings: ClusterSettings = {
    installation: await new ClusterStore(parts.pool).installation(),
    image: config.SANDBOX_IMAGE,
    imagePullPolicy: config.SANDBOX_IMAGE_PULL_POLICY,
    hubUrl: config.HUB_URL === '' ? `wss://${host}:${config.HUB_PORT}` : config.HUB_URL,
    hubCa: tls.cert,
    hubCidrs: config.HUB_CIDRS === '' ? null : config.HUB_CIDRS.split(',').map((cidr) => cidr.trim()),
    cpuMillis: config.SANDBOX_CPU_MILLIS,
    cpuRequestMillis: config.SANDBOX_CPU_REQUEST_MILLIS,
    memoryMib: mib(config.SANDBOX_MEMORY_BYTES),
    workspaceMib: mib(config.SANDBOX_WORKSPACE_BYTES),
    tmpMib: mib(config.SANDBOX_TMP_BYTES),
    contextAccessMode: config.SANDBOX_CONTEXT_ACCESS_MODE,
    quota: {
      pods: config.SANDBOX_QUOTA_PODS,
      cpuMillis: config.SANDBOX_QUOTA_CPU_MILLIS,
      memoryMib: mib(config.SANDBOX_QUOTA_MEMORY_BYTES),
      storageMib: mib(config.SANDBOX_QUOTA_STORAGE_BYTES),
    },
  };
  const cluster = Cluster.connect({
    kubeconfig: config.KUBECONFIG === '' ? null : config.KUBECONFIG,
    fieldManager: 'holdfast',
    logger: parts.logger,
  });
  return KubernetesHost.start(parts, cluster, {
    settings,
    door: { host: config.HUB_HOST, port: config.HUB_PORT, tls },
    idleMs: config.SANDBOX_IDLE_MS,
    nodeLostMs: config.SANDBOX_NODE_LOST_MS,
    orphanMs: config.SANDBOX_ORPHAN_MS,
    workspaceBytes: config.SANDBOX_WORKSPACE_BYTES,
  });
}

/** The operator's own certificate, or one that derives from the secret. Runners trust it and no other. */
async function hubTls(config: SandboxConfig): Promise<{ cert: string; key: string }> {
  const { HUB_TLS_CERT: cert, HUB_TLS_KEY: key, HUB_SECRET: secret } = config;
  if ((cert === '') !== (key === ''))
    throw new AppError('invalid', 'config.invalid', 'Set both HUB_TLS_CERT and HUB_TLS_KEY, or neither.');
  if (cert !== '') return { cert, key };
  if (secret.length < 16)
    throw new AppError(
      'invalid',
      'config.invalid',
      'SANDBOX_PROVIDER=kubernetes needs HUB_SECRET (16 characters or more), or HUB_TLS_CERT and HUB_TLS_KEY.',
    );
  return hubCertificate(secret);
}
