import { globSync, readFileSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { dirname, join } from 'node:path';
import { parseSync } from '@swc/core';
import { PROJECT_RULES, type ProjectRule, PURE_FILE, ROOT_PROJECTS, SPEC_FILE } from './import-rules.ts';

/** One import as it stands in a file. */
interface Edge {
  readonly target: string;
  readonly line: number;
  readonly typeOnly: boolean;
}

/** A project with its rule and the packages that it declares. */
interface Project {
  readonly folder: string;
  readonly name: string;
  readonly rule: ProjectRule;
  readonly declared: ReadonlySet<string>;
}

interface Manifest {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
}

const SCOPE = '@holdfast/';
const SOURCES = '{src,test}/**/*.{ts,tsx,mts,mjs}';
const SKIPPED = ['node_modules', 'dist', '.next', 'generated'];

/**
 * Checks every import of the repository at `root` against {@link PROJECT_RULES}: types, dynamic imports and re-exports
 * too. Returns one line per fault, `file:line: what and what to do`, sorted.
 */
export function checkImports(root: string): string[] {
  const rootManifest = readManifest(root, '.');
  const development = new Set(Object.keys({ ...rootManifest.dependencies, ...rootManifest.devDependencies }));
  const faults: string[] = [];
  for (const project of projectsOf(root, development)) {
    for (const file of globSync(`${project.folder}/${SOURCES}`, {
      cwd: root,
      exclude: (name) => SKIPPED.includes(name),
    })) {
      const spec = SPEC_FILE.test(file);
      const edges = parsedEdges(file, readFileSync(join(root, file), 'utf8'));
      if (edges === null) faults.push(`${file}:1: cannot be parsed; the type check says where`);
      for (const edge of edges ?? []) {
        const fault = judge(project, file, edge, spec, development);
        if (fault !== null) faults.push(`${file}:${edge.line}: ${fault}`);
      }
    }
  }
  return faults.sort();
}

/** The imports of a file, or null when it is no TypeScript: its imports are not known then. */
function parsedEdges(file: string, text: string): Edge[] | null {
  try {
    return edgesOf(file, text);
  } catch {
    return null;
  }
}

/** What is wrong with one import, or null. */
function judge(
  project: Project,
  file: string,
  edge: Edge,
  spec: boolean,
  development: ReadonlySet<string>,
): string | null {
  const { target } = edge;
  const { rule } = project;
  if (target.startsWith('.')) return judgeRelative(project, file, target, spec);
  if (target.startsWith(SCOPE)) return judgeLib(project, file, edge, spec);
  if (PURE_FILE.test(file) && !spec && !edge.typeOnly && target !== 'zod') {
    return `a pure file imports "${target}"; do the I/O in the caller and pass the value`;
  }
  if (target.startsWith('node:') || builtinModules.includes(target)) {
    if (!target.startsWith('node:')) return `write "node:${target}"`;
    return rule.browser === true && !spec ? `${project.folder} runs in browsers; "${target}" does not` : null;
  }
  const name = packageOf(target);
  if (spec && development.has(name)) return null;
  if (isRefused(rule.refused, target)) return `${project.folder} may not import "${target}" (bin/src/import-rules.ts)`;
  return project.declared.has(name) ? null : `"${name}" is not declared in ${project.folder}/package.json`;
}

function judgeRelative(project: Project, file: string, target: string, spec: boolean): string | null {
  const found = join(dirname(file), target);
  if (found.startsWith(`${project.folder}/`)) {
    return SPEC_FILE.test(found) && !spec ? `"${target}" is a spec; only specs may import it` : null;
  }
  // What bin runs before anything is built reads the declarations from their source.
  if (project.folder === 'bin' && found === 'libs/contracts/src/index.ts') return null;
  // Servers, scripted models and the cluster of the specs have no package to be imported by.
  const isTool = ROOT_PROJECTS.some((folder) => found.startsWith(`${folder}/src/`));
  if (isTool && (spec || ['libs/testing', 'bench', ...ROOT_PROJECTS].includes(project.folder))) return null;
  // What docker-compose.yml hands on is held against what each service reads.
  if (project.folder === 'bin' && spec && /^services\/[\w-]+\/src\/config\.ts$/.test(found)) return null;
  return `"${target}" leaves ${project.folder}; import the other project by its name`;
}

function judgeLib(project: Project, file: string, edge: Edge, spec: boolean): string | null {
  const [name = '', ...deep] = edge.target.slice(SCOPE.length).split('/');
  if (deep.length > 0) return `"${edge.target}" goes past the door; import "${SCOPE}${name}"`;
  if (name === project.name) return 'a project imports itself by relative paths';
  if (spec && name === 'testing') return null;
  if (!project.rule.libs.includes(name))
    return `${project.folder} may not import "${edge.target}" (bin/src/import-rules.ts)`;
  if (project.rule.typesOnly?.includes(name) === true && !edge.typeOnly && !spec)
    return `${project.folder} may import only types of "${edge.target}"`;
  if (PURE_FILE.test(file) && name !== 'contracts' && !edge.typeOnly && !spec)
    return `a pure file imports "${edge.target}"; only contracts are pure`;
  return project.declared.has(edge.target) || project.folder === 'bin'
    ? null
    : `"${edge.target}" is not declared in ${project.folder}/package.json`;
}

function isRefused(patterns: readonly string[], target: string): boolean {
  const matches = (pattern: string): boolean =>
    pattern.endsWith('*') ? target.startsWith(pattern.slice(0, -1)) : target === pattern;
  if (patterns.some((pattern) => pattern.startsWith('!') && matches(pattern.slice(1)))) return false;
  return patterns.some((pattern) => !pattern.startsWith('!') && matches(pattern));
}

/** `@scope/name/deep` → `@scope/name`. */
function packageOf(target: string): string {
  return target.split('/', target.startsWith('@') ? 2 : 1).join('/');
}

function projectsOf(root: string, development: ReadonlySet<string>): Project[] {
  const projects = new Map<string, Project>();
  for (const rule of PROJECT_RULES) {
    for (const folder of globSync(rule.folder, { cwd: root, exclude: (name) => SKIPPED.includes(name) })) {
      if (projects.has(folder)) continue;
      const own = readManifest(root, folder);
      const declared = ROOT_PROJECTS.includes(folder)
        ? development
        : new Set(Object.keys({ ...own.dependencies, ...own.devDependencies }));
      projects.set(folder, { folder, name: folder.split('/').at(-1) ?? folder, rule, declared });
    }
  }
  return [...projects.values()];
}

function readManifest(root: string, folder: string): Manifest {
  try {
    return JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8')) as Manifest;
  } catch {
    return {};
  }
}

/** Every import, re-export, `import()` and `import('…')` type of a file. */
export function edgesOf(file: string, text: string): Edge[] {
  const bytes = Buffer.from(text);
  const edges: Edge[] = [];
  const add = (source: unknown, typeOnly: boolean): void => {
    if (!isNode(source) || source.type !== 'StringLiteral' || typeof source['value'] !== 'string') return;
    // Positions are bytes and count from 1.
    const line = bytes
      .subarray(0, source.span.start - 1)
      .toString('latin1')
      .split('\n').length;
    edges.push({ target: source['value'], line, typeOnly });
  };
  const visit = (value: unknown): void => {
    if (Array.isArray(value)) value.forEach(visit);
    if (!isNode(value)) {
      if (typeof value === 'object' && value !== null && !Array.isArray(value)) Object.values(value).forEach(visit);
      return;
    }
    if (
      value.type === 'ImportDeclaration' ||
      value.type === 'ExportNamedDeclaration' ||
      value.type === 'ExportAllDeclaration'
    ) {
      add(value['source'], value['typeOnly'] === true || onlyTypes(value['specifiers']));
    } else if (value.type === 'TsImportType') add(value['argument'], true);
    else if (value.type === 'TsExternalModuleReference') add(value['expression'], false);
    else if (value.type === 'CallExpression' && isNode(value['callee']) && value['callee'].type === 'Import') {
      const [first] = value['arguments'] as readonly { readonly expression: unknown }[];
      add(first?.expression, false);
    }
    Object.values(value).forEach(visit);
  };
  visit(parseSync(text, { syntax: 'typescript', decorators: true, tsx: file.endsWith('.tsx') }).body);
  return edges;
}

function onlyTypes(specifiers: unknown): boolean {
  return (
    Array.isArray(specifiers) &&
    specifiers.length > 0 &&
    specifiers.every((each: { readonly isTypeOnly?: boolean }) => each.isTypeOnly === true)
  );
}

interface SyntaxNode {
  readonly type: string;
  readonly span: { readonly start: number };
  readonly [member: string]: unknown;
}
function isNode(value: unknown): value is SyntaxNode {
  return (
    typeof value === 'object' && value !== null && 'type' in value && typeof value.type === 'string' && 'span' in value
  );
}

if (import.meta.main) {
  const faults = checkImports(process.cwd());
  for (const fault of faults) console.error(fault);
  console.log(faults.length === 0 ? 'imports: every edge is allowed' : `imports: ${faults.length} not allowed`);
  process.exit(faults.length === 0 ? 0 : 1);
}
