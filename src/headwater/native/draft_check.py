import sys,time; sys.path.insert(0,'/tmp/wt/native/src')
import torch
torch.set_num_threads(1)
from headwater.native.layer import *
from headwater.native.library import kernels, level, product
from headwater.cells import cell_class
lib=kernels()
def check(kind,B,T,D,H,seed=0):
    torch.manual_seed(seed)
    cell=cell_class(kind)(D,H)
    for p in cell.parameters(): p.data.normal_(0,0.3)
    L=torch.randint(1,T+1,(B,)); L[0]=T
    x=torch.randn(B,T,D)
    pk=Packing.of(L,T)
    def native():
        xs=x.clone().requires_grad_()
        st=cell.init_state(B)
        y,c=RecurrentLayer.apply(kind,pk,xs.view(B*T,D)[pk.index_N],cell.weight_ih,cell.weight_hh,cell.bias_ih,cell.bias_hh,st['h'],st.get('c'))
        return xs,y
    def ref():
        xs=x.double().clone().requires_grad_()
        import copy; d=copy.deepcopy(cell).double()
        st=d.init_state(B); ys=[]
        for t in range(T):
            y,st=d.step(xs[:,t],st); ys.append(y)
        y=torch.stack(ys,1).reshape(B*T,H)[pk.index_N]
        return xs,y,d
    w=torch.randn(int(L.sum()),H)
    a,ya=native(); cell.zero_grad(); (ya*w).sum().backward()
    b,yb,d=ref(); (yb*w.double()).sum().backward()
    errs=[(ya-yb).abs().max().item(), ((a.grad-b.grad).norm()/b.grad.norm()).item()]+[((p.grad-q.grad).norm()/q.grad.norm()).item() for p,q in zip(cell.parameters(),d.parameters())]
    print(level(),kind,(B,T,D,H),' '.join(f'{e:.1e}' for e in errs), 'OK' if max(errs)<1e-5 else 'BAD')
for lv in (2,1,0):
    lib.headwater_use_level(lv)
    for kind in ('lstm','gru','gru_reset_before','rnn'):
        for s in ((1,1,1,1),(5,7,3,5),(16,20,9,33),(33,30,40,64)): check(kind,*s)
lib.headwater_use_level(2)
