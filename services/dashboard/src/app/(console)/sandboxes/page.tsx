import { SandboxesPage } from '../../../components/sandboxes-page.tsx';

export const metadata = { title: 'Sandboxes' };

export default function Page() {
  return <SandboxesPage />;
}
