import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { globSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';

/**
 * `node bin/src/generate-kubernetes-types.ts`: writes the types of agent-sandbox's kinds from its CRDs, which come from
 * the Go module (Go ≥ 1.26 on PATH). `FILE` is checked in; nothing needs Go to build.
 */
const MODULE = 'sigs.k8s.io/agent-sandbox@v0.5.6';
const VERSION = 'v1beta1';
export const FILE = 'services/sandbox/src/kubernetes/generated/agent-sandbox.v1beta1.ts';

interface Schema {
  readonly type?: string;
  readonly description?: string;
  readonly enum?: readonly string[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly additionalProperties?: Schema | boolean;
}
/** What is read of a CustomResourceDefinition. */
export interface Crd {
  readonly spec: {
    readonly group: string;
    readonly names: { readonly kind: string };
    readonly versions: readonly { readonly name: string; readonly schema: { readonly openAPIV3Schema: Schema } }[];
  };
}

/** Parts of Kubernetes' own API, which the CRDs repeat in full, by the end of their path. */
const KNOWN: readonly (readonly [path: RegExp, type: string])[] = [
  [/\.podTemplate\.spec$/, 'PodSpec'],
  [/\.volumeClaimTemplates\[\]\.spec$/, 'PersistentVolumeClaimSpec'],
  [/\.networkPolicy\.ingress\[\]$/, 'NetworkPolicyIngressRule'],
  [/\.networkPolicy\.egress\[\]$/, 'NetworkPolicyEgressRule'],
  [/\.conditions\[\]$/, 'Condition'],
  [/^metadata$/, 'ObjectMeta'],
];

/** The text of the generated file without its first line, which has the hash of the rest. */
export function typesOf(crds: readonly Crd[]): string {
  const kinds = [...crds].sort((a, b) => (a.spec.names.kind < b.spec.names.kind ? -1 : 1)).map(kindOf);
  const imports = [...new Set(KNOWN.map(([, type]) => type))].filter((type) =>
    kinds.some((text) => new RegExp(`\\b${type}\\b`).test(text)),
  );
  return [
    `import type { ${imports.sort().join(', ')} } from '../kinds.ts';`,
    '',
    `/** Made from the CRDs of ${MODULE} by bin/src/generate-kubernetes-types.ts. */`,
    ...kinds,
    '',
  ].join('\n');
}

/** The first line of the file: a spec compares the hash, so that what is edited by hand is noticed. */
export function withHash(text: string): string {
  return `// Generated, sha256 of the rest ${createHash('sha256').update(text).digest('hex')}\n${text}`;
}

function kindOf(crd: Crd): string {
  const { group, names, versions } = crd.spec;
  const schema = versions.find((version) => version.name === VERSION)?.schema.openAPIV3Schema;
  if (schema === undefined) throw new Error(`${names.kind} has no ${VERSION}`);
  const members = Object.entries(schema.properties ?? {})
    .filter(([name]) => name !== 'apiVersion' && name !== 'kind')
    .map(([name, member]) => {
      const optional = name === 'metadata' || schema.required?.includes(name) === true ? '' : '?';
      return `  readonly ${name}${optional}: ${typeOf(member, name, '  ')};`;
    });
  return [
    `export interface ${names.kind} {`,
    `  readonly apiVersion: '${group}/${VERSION}';`,
    `  readonly kind: '${names.kind}';`,
    ...members,
    '}',
  ].join('\n');
}

function typeOf(schema: Schema, path: string, indent: string): string {
  const known = KNOWN.find(([pattern]) => pattern.test(path));
  if (known !== undefined) return known[1];
  if (schema.enum !== undefined) return schema.enum.map((value) => `'${value}'`).join(' | ');
  if (schema.type === 'array') return `readonly ${grouped(typeOf(schema.items ?? {}, `${path}[]`, indent))}[]`;
  if (schema.properties !== undefined) {
    const members = Object.entries(schema.properties).map(([name, member]) => {
      const optional = schema.required?.includes(name) === true ? '' : '?';
      return `${indent}  readonly ${name}${optional}: ${typeOf(member, `${path}.${name}`, `${indent}  `)};`;
    });
    return ['{', ...members, `${indent}}`].join('\n');
  }
  if (typeof schema.additionalProperties === 'object')
    return `Readonly<Record<string, ${typeOf(schema.additionalProperties, `${path}.*`, indent)}>>`;
  const plain = { string: 'string', boolean: 'boolean', integer: 'number', number: 'number' }[schema.type ?? ''];
  if (plain === undefined) throw new Error(`${path}: no type for ${JSON.stringify(schema).slice(0, 200)}`);
  return plain;
}

function grouped(type: string): string {
  return type.includes(' | ') && !type.startsWith('{') ? `(${type})` : type;
}

if (import.meta.main) {
  const { Dir } = JSON.parse(execFileSync('go', ['mod', 'download', '-json', MODULE], { encoding: 'utf8' })) as {
    Dir: string;
  };
  const crds = globSync('helm/crds/*.yaml', { cwd: Dir }).map(
    (file) => parse(readFileSync(join(Dir, file), 'utf8')) as Crd,
  );
  writeFileSync(FILE, withHash(typesOf(crds)));
}
