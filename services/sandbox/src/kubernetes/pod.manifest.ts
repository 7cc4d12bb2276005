import { HUB_AUDIENCE, type SandboxEnvironment } from '@holdfast/contracts';
import type { PersistentVolumeClaimSpec, PodSpec } from './kinds.ts';
import { SERVICE_ACCOUNT } from './names.ts';
import { type ClusterSettings, cpu, mebibytes } from './settings.manifest.ts';

/** Everything that a runner's pod may say. What could give it rights has no member here, or only the one safe value. */
export interface RunnerPodSpec {
  readonly automountServiceAccountToken: false;
  readonly serviceAccountName: typeof SERVICE_ACCOUNT;
  readonly enableServiceLinks: false;
  readonly shareProcessNamespace: false;
  readonly restartPolicy: 'Always';
  readonly terminationGracePeriodSeconds: number;
  readonly dnsPolicy: 'ClusterFirst';
  readonly securityContext: {
    readonly runAsNonRoot: true;
    readonly runAsUser: typeof AGENT;
    readonly runAsGroup: typeof AGENT;
    readonly fsGroup: typeof AGENT;
    readonly fsGroupChangePolicy: 'OnRootMismatch';
    readonly seccompProfile: { readonly type: 'RuntimeDefault' };
  };
  readonly runtimeClassName?: string;
  readonly nodeSelector: Readonly<Record<string, string>>;
  readonly tolerations: NonNullable<PodSpec['tolerations']>;
  readonly containers: readonly [RunnerContainer];
  readonly volumes: readonly RunnerVolume[];
}

interface RunnerContainer {
  readonly name: typeof RUNNER;
  readonly image: string;
  readonly imagePullPolicy: ClusterSettings['imagePullPolicy'];
  readonly env: readonly (
    | { readonly name: string; readonly value: string }
    | { readonly name: string; readonly valueFrom: { readonly fieldRef: { readonly fieldPath: 'metadata.uid' } } }
  )[];
  readonly resources: {
    readonly requests: Readonly<Record<'cpu' | 'memory' | 'ephemeral-storage', string>>;
    readonly limits: Readonly<Record<'cpu' | 'memory' | 'ephemeral-storage', string>>;
  };
  readonly securityContext: {
    readonly allowPrivilegeEscalation: false;
    readonly readOnlyRootFilesystem: true;
    readonly capabilities: { readonly drop: readonly ['ALL'] };
  };
  readonly terminationMessagePolicy: 'FallbackToLogsOnError';
  readonly volumeMounts: readonly {
    readonly name: string;
    readonly mountPath: string;
    readonly subPath?: string;
    readonly readOnly?: true;
  }[];
}

type RunnerVolume = { readonly name: string } & (
  | { readonly emptyDir: { readonly sizeLimit: string; readonly medium?: 'Memory' } }
  | { readonly persistentVolumeClaim: { readonly claimName: string } }
  | {
      readonly projected: {
        readonly sources: readonly [
          {
            readonly serviceAccountToken: {
              readonly audience: typeof HUB_AUDIENCE;
              readonly expirationSeconds: number;
              readonly path: string;
            };
          },
        ];
      };
    }
);

/** What a sandbox is made from: changed in any part, it is another template. */
export interface Blueprint {
  readonly spec: RunnerPodSpec;
  readonly volumeClaimTemplates: readonly {
    readonly metadata: { readonly name: typeof WORK; readonly labels: Readonly<Record<string, string>> };
    readonly spec: PersistentVolumeClaimSpec;
  }[];
}

export const RUNNER = 'runner';
/** uid, gid and fsGroup of everything in a sandbox. */
const AGENT = 1000;
const WORK = 'work';
const WORKSPACE_PATH = '/workspace';
const HOME_PATH = '/home/agent';
const TOKEN_DIR = '/var/run/secrets/holdfast';
/** Logs, which the kubelet rotates well below it. */
const LOGS_MIB = 256;
const TERMINATION_SECONDS = 10;
const TOKEN_SECONDS = 3_600;

/**
 * One runner. Its workspace and its home lie in one volume, `work`: a claim that lives as long as the sandbox, or a
 * folder of the node that lives as long as the pod. With `contextVolume` the workspace is that claim's instead.
 */
export function blueprint(
  settings: ClusterSettings,
  sandbox: SandboxEnvironment,
  labels: Readonly<Record<string, string>>,
  contextVolume: string | null = null,
): Blueprint {
  const cpuMillis = sandbox.cpu_millis ?? settings.cpuMillis;
  const memory = mebibytes(sandbox.memory_mib ?? settings.memoryMib);
  const workspaceMib = sandbox.workspace_mib ?? settings.workspaceMib;
  const kept = sandbox.workspace === 'volume';
  return {
    spec: {
      automountServiceAccountToken: false,
      serviceAccountName: SERVICE_ACCOUNT,
      enableServiceLinks: false,
      shareProcessNamespace: false,
      // The kubelet starts a runner that died again, in the same pod, with its files.
      restartPolicy: 'Always',
      terminationGracePeriodSeconds: TERMINATION_SECONDS,
      dnsPolicy: 'ClusterFirst',
      securityContext: {
        runAsNonRoot: true,
        runAsUser: AGENT,
        runAsGroup: AGENT,
        fsGroup: AGENT,
        fsGroupChangePolicy: 'OnRootMismatch',
        seccompProfile: { type: 'RuntimeDefault' },
      },
      ...(sandbox.runtime_class === null ? {} : { runtimeClassName: sandbox.runtime_class }),
      nodeSelector: Object.fromEntries(Object.entries(sandbox.node_selector).sort(([a], [b]) => (a < b ? -1 : 1))),
      tolerations: sandbox.tolerations.map(({ key, operator, value, effect }) => ({
        ...(key === undefined ? {} : { key }),
        ...(operator === undefined ? {} : { operator }),
        ...(value === undefined ? {} : { value }),
        ...(effect === undefined ? {} : { effect }),
      })),
      containers: [
        {
          name: RUNNER,
          image: sandbox.image ?? settings.image,
          imagePullPolicy: settings.imagePullPolicy,
          env: [
            { name: 'HOLDFAST_HUB_URL', value: settings.hubUrl },
            { name: 'HOLDFAST_HUB_CA', value: settings.hubCa },
            { name: 'HOLDFAST_TOKEN_FILE', value: `${TOKEN_DIR}/token` },
            { name: 'HOLDFAST_POD_UID', valueFrom: { fieldRef: { fieldPath: 'metadata.uid' } } },
            { name: 'HOLDFAST_WORKSPACE', value: WORKSPACE_PATH },
            { name: 'HOME', value: HOME_PATH },
          ],
          resources: {
            requests: {
              cpu: cpu(Math.min(settings.cpuRequestMillis, cpuMillis)),
              memory,
              'ephemeral-storage': mebibytes(LOGS_MIB),
            },
            limits: {
              cpu: cpu(cpuMillis),
              memory,
              'ephemeral-storage': mebibytes(LOGS_MIB + (kept ? 0 : workspaceMib)),
            },
          },
          securityContext: {
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            capabilities: { drop: ['ALL'] },
          },
          // The last lines of a runner that died say why in the pod's status.
          terminationMessagePolicy: 'FallbackToLogsOnError',
          volumeMounts: [
            { name: contextVolume === null ? WORK : 'context', mountPath: WORKSPACE_PATH, subPath: 'workspace' },
            { name: WORK, mountPath: HOME_PATH, subPath: 'home' },
            { name: 'tmp', mountPath: '/tmp', subPath: 'tmp' },
            // The runner links the session's folder there.
            { name: 'tmp', mountPath: '/mnt', subPath: 'mnt' },
            { name: 'token', mountPath: TOKEN_DIR, readOnly: true },
          ],
        },
      ],
      volumes: [
        // In memory, within the memory limit: a bound on disk is enforced by killing the whole pod, a tmpfs is just full.
        { name: 'tmp', emptyDir: { medium: 'Memory', sizeLimit: mebibytes(settings.tmpMib) } },
        {
          name: 'token',
          projected: {
            sources: [
              {
                serviceAccountToken: { audience: HUB_AUDIENCE, expirationSeconds: TOKEN_SECONDS, path: 'token' },
              },
            ],
          },
        },
        ...(kept ? [] : [{ name: WORK, emptyDir: { sizeLimit: mebibytes(workspaceMib) } }]),
        ...(contextVolume === null ? [] : [{ name: 'context', persistentVolumeClaim: { claimName: contextVolume } }]),
      ],
    },
    volumeClaimTemplates: kept
      ? [{ metadata: { name: WORK, labels }, spec: volumeSpec(sandbox, workspaceMib, 'ReadWriteOnce') }]
      : [],
  };
}

export function volumeSpec(
  sandbox: SandboxEnvironment,
  sizeMib: number,
  accessMode: ClusterSettings['contextAccessMode'],
): PersistentVolumeClaimSpec {
  return {
    accessModes: [accessMode],
    resources: { requests: { storage: mebibytes(sizeMib) } },
    ...(sandbox.storage_class === null ? {} : { storageClassName: sandbox.storage_class }),
  };
}
