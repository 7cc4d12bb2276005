import { DEFAULT_SANDBOX, type SandboxEnvironment } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { claimObject } from './claim.manifest.ts';
import { contextObjects } from './context.manifest.ts';
import { environmentObjects } from './environment.manifest.ts';
import { hubEgress } from './hub.manifest.ts';
import { claimName, contextVolumeName, environmentName, namespaceName } from './names.ts';
import { namespaceObjects } from './namespace.manifest.ts';
import type { RunnerPodSpec } from './pod.manifest.ts';
import type { ClusterSettings } from './settings.manifest.ts';

const settings: ClusterSettings = {
  installation: 'a1b2c3d4',
  image: 'holdfast/harness:1',
  imagePullPolicy: 'IfNotPresent',
  hubUrl: 'wss://10.87.0.1:7443',
  hubCa: '-----BEGIN CERTIFICATE-----',
  hubCidrs: null,
  cpuMillis: 1_000,
  cpuRequestMillis: 50,
  memoryMib: 2_048,
  workspaceMib: 5_120,
  tmpMib: 512,
  contextAccessMode: 'ReadWriteMany',
  quota: { pods: 20, cpuMillis: 20_500, memoryMib: 40_960, storageMib: 102_400 },
};
const of = { workspaceId: 'wrkspc_1', environmentId: 'env_1' };
const made = (changes: Partial<SandboxEnvironment> = {}, with_: Partial<ClusterSettings> = {}) =>
  environmentObjects({ ...settings, ...with_ }, { ...of, sandbox: { ...DEFAULT_SANDBOX, ...changes } });
const podOf = (changes: Partial<SandboxEnvironment> = {}) => made(changes).template.spec.podTemplate.spec;

/** What an environment may ask for. */
const environments: fc.Arbitrary<SandboxEnvironment> = fc.record({
  image: fc.constantFrom(null, 'registry.example/tools:2'),
  cpu_millis: fc.option(fc.integer({ min: 50, max: 256_000 })),
  memory_mib: fc.option(fc.integer({ min: 64, max: 4_194_304 })),
  runtime_class: fc.constantFrom(null, 'gvisor'),
  node_selector: fc.dictionary(fc.constantFrom('disk', 'example.com/pool', 'zone'), fc.constantFrom('a', 'b')),
  tolerations: fc.subarray<SandboxEnvironment['tolerations'][number]>([
    { operator: 'Exists' },
    { key: 'gpu', operator: 'Equal', value: 'x', effect: 'NoSchedule' },
  ]),
  workspace: fc.constantFrom('volume' as const, 'ephemeral' as const),
  workspace_mib: fc.option(fc.integer({ min: 16, max: 16_777_216 })),
  storage_class: fc.constantFrom(null, 'fast'),
  pool_size: fc.integer({ min: 0, max: 50 }),
  idle_seconds: fc.constant(null),
  max_lifetime_seconds: fc.constant(null),
});

describe('names', () => {
  const ids = fc.stringMatching(/^[A-Za-z0-9_-]{1,80}$/);
  const dns1035 = /^[a-z](?:[a-z0-9-]*[a-z0-9])?$/;

  it('are DNS-1035 and leave room for what is derived from them', () => {
    fc.assert(
      fc.property(ids, fc.integer({ min: 1, max: 2 ** 31 }), (id, n) => {
        for (const name of [
          namespaceName('a1b2c3d4', id),
          `work-${environmentName(id, { n })}-abcde`,
          `${environmentName(id, { n })}-network-policy`,
          contextVolumeName(id),
          `work-${claimName(id, n)}`,
        ]) {
          expect(name).toMatch(dns1035);
          expect(name.length).toBeLessThanOrEqual(63);
        }
      }),
    );
  });

  it('differ wherever an id, an installation, an incarnation or what pods are made from differs', () => {
    const names = [
      namespaceName('a', 'b1'),
      namespaceName('a', 'b2'),
      namespaceName('b', 'b1'),
      namespaceName('ab', '1'),
      namespaceName('a', 'b_1'),
      namespaceName('a', 'B1'),
      claimName('sbx_1', 1),
      claimName('sbx_1', 2),
      claimName('sbx_2', 1),
      environmentName('env_1', { a: 1 }),
      environmentName('env_1', { a: 2 }),
      environmentName('env_2', { a: 1 }),
    ];
    expect(new Set(names).size).toBe(names.length);
  });

  it('refuse an installation that cannot stand in a name', () => {
    expect(() => namespaceName('Not OK', 'w')).toThrow(
      expect.objectContaining({ code: 'cluster.installation-invalid' }),
    );
  });
});

describe('a namespace', () => {
  const objects = namespaceObjects(settings, 'wrkspc_1');

  it('comes first, then what confines everything in it', () => {
    expect(objects.map(({ kind }) => kind)).toEqual([
      'Namespace',
      'NetworkPolicy',
      'ResourceQuota',
      'LimitRange',
      'ServiceAccount',
    ]);
    const [namespace, ...rest] = objects;
    for (const object of rest) expect(object.metadata.namespace).toBe(namespace?.metadata.name);
    for (const { metadata } of objects) {
      expect(metadata.labels).toMatchObject({
        'app.kubernetes.io/managed-by': 'holdfast',
        'holdfast.dev/installation': 'a1b2c3d4',
      });
      expect(metadata.annotations).toEqual({ 'holdfast.dev/workspace-id': 'wrkspc_1' });
    }
  });

  it('enforces Pod Security restricted', () => {
    expect(objects[0]?.metadata.labels).toMatchObject({ 'pod-security.kubernetes.io/enforce': 'restricted' });
  });

  it('lets nothing in, and out only to the hub', () => {
    expect(objects[1]).toMatchObject({
      spec: {
        podSelector: {},
        policyTypes: ['Ingress', 'Egress'],
        ingress: [],
        egress: [{ to: [{ ipBlock: { cidr: '10.87.0.1/32' } }], ports: [{ protocol: 'TCP', port: 7443 }] }],
      },
    });
  });

  it('has the quota of the workspace in canonical quantities', () => {
    expect(objects[2]).toMatchObject({
      spec: { hard: { pods: '20', 'limits.cpu': '20500m', 'limits.memory': '40Gi', 'requests.storage': '100Gi' } },
    });
  });
});

describe('the way to the hub', () => {
  it('is the addresses that are given, with DNS where the hub has a name', () => {
    const [hub, dns, ...rest] = hubEgress({ hubUrl: 'wss://hub.example:8443', hubCidrs: ['192.0.2.0/28'] });
    expect(hub).toEqual({ to: [{ ipBlock: { cidr: '192.0.2.0/28' } }], ports: [{ protocol: 'TCP', port: 8443 }] });
    expect(dns?.ports).toEqual([
      { protocol: 'UDP', port: 53 },
      { protocol: 'TCP', port: 53 },
    ]);
    expect(rest).toEqual([]);
  });

  it('is an IPv6 address as well, at the scheme’s port', () => {
    expect(hubEgress({ hubUrl: 'wss://[2001:db8::1]/x', hubCidrs: null })).toEqual([
      { to: [{ ipBlock: { cidr: '2001:db8::1/128' } }], ports: [{ protocol: 'TCP', port: 443 }] },
    ]);
  });

  it('is the pods of the sandbox service behind a Service of the cluster, and no others of their namespace', () => {
    expect(hubEgress({ hubUrl: 'wss://sandbox.platform.svc:7443', hubCidrs: [] })[0]?.to).toEqual([
      {
        namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'platform' } },
        podSelector: {
          matchLabels: { 'app.kubernetes.io/name': 'holdfast', 'app.kubernetes.io/component': 'sandbox' },
        },
      },
    ]);
  });

  it('is refused where the settings leave it open', () => {
    expect(() => hubEgress({ hubUrl: 'wss://hub.example:8443', hubCidrs: null })).toThrow(
      expect.objectContaining({ code: 'cluster.hub-unreachable' }),
    );
  });
});

describe('an environment', () => {
  it('has one name for its template and its pool, which refers to it', () => {
    const { template, pool } = made({ pool_size: 3 });
    expect(pool.metadata.name).toBe(template.metadata.name);
    expect(pool.spec).toMatchObject({ replicas: 3, sandboxTemplateRef: { name: template.metadata.name } });
  });

  it('keeps its name while its pods are made from the same', () => {
    const name = made().template.metadata.name;
    expect(made({ pool_size: 7, idle_seconds: 60, max_lifetime_seconds: 600 }).template.metadata.name).toBe(name);
    expect(made({}, { hubCidrs: ['192.0.2.0/28'], quota: { ...settings.quota, pods: 1 } }).template.metadata.name).toBe(
      name,
    );
    expect(made({ node_selector: { a: '1', b: '2' } }).pool.metadata.name).toBe(
      made({ node_selector: { b: '2', a: '1' } }).pool.metadata.name,
    );
  });

  it.each<[string, Partial<SandboxEnvironment>]>([
    ['image', { image: 'other:1' }],
    ['cpu', { cpu_millis: 333 }],
    ['memory', { memory_mib: 333 }],
    ['runtime class', { runtime_class: 'gvisor' }],
    ['node selector', { node_selector: { a: 'b' } }],
    ['tolerations', { tolerations: [{ key: 'a' }] }],
    ['workspace', { workspace: 'ephemeral' }],
    ['size', { workspace_mib: 99 }],
    ['storage class', { storage_class: 'fast' }],
  ])('has another name with another %s', (_, changes) => {
    expect(made(changes).template.metadata.name).not.toBe(made().template.metadata.name);
  });

  it('has other names in the platform’s other versions: image, hub, CA', () => {
    const names = [{}, { image: 'x:2' }, { hubUrl: 'wss://10.0.0.2:1' }, { hubCa: 'other' }].map(
      (changed) => made({}, changed).pool.metadata.name,
    );
    expect(new Set(names).size).toBe(4);
  });

  it('has a policy of its own, because the controller’s default one leads to the internet', () => {
    expect(made().template.spec).toMatchObject({
      networkPolicyManagement: 'Managed',
      networkPolicy: { ingress: [], egress: [{ to: [{ ipBlock: { cidr: '10.87.0.1/32' } }] }] },
    });
  });

  it('keeps workspace and home in one claim per sandbox, labelled as ours', () => {
    const { spec, metadata } = made({ storage_class: 'fast', workspace_mib: 100 }).template;
    expect(spec.volumeClaimTemplates).toEqual([
      {
        metadata: { name: 'work', labels: metadata.labels },
        spec: {
          accessModes: ['ReadWriteOnce'],
          resources: { requests: { storage: '100Mi' } },
          storageClassName: 'fast',
        },
      },
    ]);
    expect(spec.podTemplate.spec.containers[0].volumeMounts).toEqual(
      expect.arrayContaining([
        { name: 'work', mountPath: '/workspace', subPath: 'workspace' },
        { name: 'work', mountPath: '/home/agent', subPath: 'home' },
      ]),
    );
    expect(spec.podTemplate.spec.volumes.map(({ name }) => name)).not.toContain('work');
  });

  it('keeps an ephemeral workspace in the pod, bounded, with a limit that has room for it', () => {
    const { spec } = made({ workspace: 'ephemeral', workspace_mib: 1_000 }).template;
    expect(spec.volumeClaimTemplates).toEqual([]);
    expect(spec.podTemplate.spec.volumes).toContainEqual({ name: 'work', emptyDir: { sizeLimit: '1000Mi' } });
    expect(spec.podTemplate.spec.containers[0].resources.limits['ephemeral-storage']).toBe('1256Mi');
  });

  it('asks for little CPU and for all of its memory', () => {
    expect(podOf({ cpu_millis: 2_000, memory_mib: 1_536 }).containers[0].resources).toMatchObject({
      requests: { cpu: '50m', memory: '1536Mi' },
      limits: { cpu: '2', memory: '1536Mi' },
    });
  });
});

describe('a pod, whatever its environment asks for', () => {
  it('has no right, no identity but the one for the hub, and no volume without a bound', () => {
    fc.assert(
      fc.property(environments, (sandbox) => {
        for (const { template } of [
          environmentObjects(settings, { ...of, sandbox }),
          contextObjects(settings, { ...of, sandbox, contextId: 'c' }),
        ]) {
          const { spec } = template.spec.podTemplate;
          expect(spec).toMatchObject({
            automountServiceAccountToken: false,
            securityContext: { runAsNonRoot: true, runAsUser: 1000, seccompProfile: { type: 'RuntimeDefault' } },
          });
          expect(spec.containers).toHaveLength(1);
          expect(spec.containers[0].securityContext).toEqual({
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            capabilities: { drop: ['ALL'] },
          });
          const text = JSON.stringify(template);
          expect(text).not.toMatch(/privileged|hostPath|hostNetwork|hostPID|hostIPC|hostPort|"add"|procMount|sysctls/);
          for (const volume of spec.volumes) {
            if ('emptyDir' in volume) expect(volume.emptyDir.sizeLimit).toMatch(/^\d+[MG]i$/);
            if ('projected' in volume) {
              expect(volume.projected.sources).toEqual([
                { serviceAccountToken: { audience: 'holdfast-hub', expirationSeconds: 3_600, path: 'token' } },
              ]);
            }
          }
          const { requests, limits } = spec.containers[0].resources;
          expect(requests.memory).toBe(limits.memory);
        }
      }),
    );
  });

  it('cannot be written with more rights: the compiler refuses', () => {
    const spec = podOf();
    // @ts-expect-error no member
    const network: RunnerPodSpec = { ...spec, hostNetwork: true };
    // @ts-expect-error no member
    const path: RunnerPodSpec = { ...spec, volumes: [{ name: 'x', hostPath: { path: '/' } }] };
    // @ts-expect-error only false
    const token: RunnerPodSpec = { ...spec, automountServiceAccountToken: true };
    const [runner] = spec.containers;
    const { securityContext } = runner;
    // @ts-expect-error no member
    const privileged: typeof securityContext = { ...securityContext, privileged: true };
    // @ts-expect-error only one container
    const second: RunnerPodSpec = { ...spec, containers: [runner, runner] };
    expect([network, path, token, privileged, second]).toHaveLength(5);
  });
});

describe('a context', () => {
  const context = (changes: Partial<SandboxEnvironment> = {}) =>
    contextObjects(settings, { ...of, sandbox: { ...DEFAULT_SANDBOX, pool_size: 4, ...changes }, contextId: 'c0ffee' });

  it('shares its workspace and nothing else', () => {
    const { volume, template } = context();
    expect(volume.spec).toEqual({ accessModes: ['ReadWriteMany'], resources: { requests: { storage: '5Gi' } } });
    expect(template.spec.podTemplate.spec.containers[0].volumeMounts).toEqual(
      expect.arrayContaining([
        { name: 'context', mountPath: '/workspace', subPath: 'workspace' },
        { name: 'work', mountPath: '/home/agent', subPath: 'home' },
      ]),
    );
    expect(template.spec.podTemplate.spec.volumes).toContainEqual({
      name: 'context',
      persistentVolumeClaim: { claimName: volume.metadata.name },
    });
  });

  it('keeps nothing warm, and is not the environment’s pool', () => {
    expect(context().pool.spec.replicas).toBe(0);
    expect(context().pool.metadata.name).not.toBe(made().pool.metadata.name);
  });

  it('keeps its volume when its environment changes', () => {
    const [before, after] = [context(), context({ memory_mib: 100 })];
    expect(after.volume.metadata.name).toBe(before.volume.metadata.name);
    expect(after.template.metadata.name).not.toBe(before.template.metadata.name);
  });
});

describe('a claim', () => {
  const claim = claimObject(settings, {
    ...of,
    sandboxId: 'sbx_1',
    sessionId: 'sesn_1',
    incarnation: 3,
    pool: 'env-x',
    deadline: new Date('2030-01-02T03:04:05.678Z'),
  });

  it('dies by itself with all that it owns, at a time that the controller does not rewrite', () => {
    expect(claim.spec).toEqual({
      warmPoolRef: { name: 'env-x' },
      lifecycle: { shutdownTime: '2030-01-02T03:04:05Z', shutdownPolicy: 'Delete' },
    });
  });

  it('says in full whose it is', () => {
    expect(claim.metadata.annotations).toEqual({
      'holdfast.dev/workspace-id': 'wrkspc_1',
      'holdfast.dev/environment-id': 'env_1',
      'holdfast.dev/sandbox-id': 'sbx_1',
      'holdfast.dev/session-id': 'sesn_1',
      'holdfast.dev/incarnation': '3',
    });
    expect(claim.metadata.name).toBe(claimName('sbx_1', 3));
  });
});
